"""Encodes a conversation as the model's input: tokens, labels of the answers, and image tensors."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from PIL import Image

from ...functional.preference import IGNORE_INDEX
from ...utils.numbers import check_number
from ...utils.text import RecordError
from ..conversations.chat_template import WrittenConversation, find_chat_template
from ..conversations.formats import text_of
from .image_tokens import ImageTokens, expand
from .record_tokenizer import RecordTokenizer, Tokens, data_sample, pad_token_id

# The entries of a record that are encoded. All others become fields of its data sample.
RECORD_KEYS = ('messages', 'images', 'rejected', 'rejected_images')


@dataclass
class _Text:
    """A written conversation before its images are inserted: one entry per token, with one placeholder per image.

    ``harmless`` and ``harmless_ids`` are given to the processor. They hold no token that the record only spells.
    """

    harmless: str
    harmless_ids: list[int]
    ids: list[int]
    labelled: np.ndarray
    in_suffix: np.ndarray
    special_tokens: bool


@TRANSFORMS.register_module()
class EncodeConversation(BaseTransform):
    """Encodes a record for a vision-language model of transformers.

    The conversation is written with a chat template that marks its answers (:func:`find_chat_template`). Labels come
    from the marks' character offsets: an answer's tokens and the end-of-turn token that closes it are labelled,
    nothing else. The processor's own call inserts the images. Every token is checked, so that everything else stays in
    place.

    What a record says is text, whatever it spells: ``</s>``, ``<|im_end|>`` or ``<image>`` in a turn are encoded as
    their characters and never as control tokens (:class:`RecordTokenizer`). A template must write everything that the
    turns say. One that leaves out a system prompt or any other text is refused.

    A single image is placed where the family's template puts it. Several images stay where they are in the turns.

    PaliGemma has one prefix (images, ``<bos>``, prompt, line break: ``token_type_ids`` 0) and one suffix (answer,
    ``<eos>``: 1), which are tokenized separately. With several turns, all that follows the first answer is suffix,
    which the model attends to causally, and only answers are labelled.

    A preference pair labels the last answers only, which is where they differ. Answers with ``train=False`` are not
    labelled.

    Args:
        processor (dict | ProcessorMixin): A transformers processor, or how to build one:
            ``dict(type='transformers.AutoProcessor.from_pretrained', pretrained_model_name_or_path=...)``. Its
            tokenizer must be a fast one.
        chat_template (str, optional): A template of ``mergemix_mm/families/chat_templates`` (one per family, such as
            ``llava``; ``llava_interleave``, as LLaVA-OneVision is released; ``plain`` for aligning a projector on
            captions; ``question_first``, which is ``llava`` with the images after the question), or a path. Defaults
            to None: the processor's own, or that of its family. A template that is not of this package is rendered in
            another process, with limits of its time, memory and text.
        max_length (int, optional): Tokens of a sample at most, those of images included. An image that does not fit
            completely is dropped with everything after it. Defaults to None, which means no limit.
        generate (bool): Whether to encode the prompt of the last answer only, for evaluation. The answer becomes
            ``gt_answer``, unless the record has one. Defaults to False.
        record_tokens (Collection[str]): Added tokens that a record may write, such as ``('<box>', '</box>')`` in
            answers of InternVL. Defaults to none, but for ``<loc0001>`` and ``<seg001>`` of PaliGemma.

    Raises:
        ValueError: If no template fits, the tokenizer is not a fast one, ``max_length`` is below 1, or
            ``record_tokens`` are unknown or control a conversation.
        RecordError: If the template leaves out what a turn says, ``max_length`` leaves no answer, or (with
            ``generate=True``) no room for the prompt.

    Examples:
        >>> encode = EncodeConversation(dict(type='ShapesProcessor'), max_length=256)
        >>> sample = encode(dataset.get_data_info(0))
        >>> sorted(sample['inputs'])
        ['attention_mask', 'input_ids', 'labels', 'original_sizes', 'pad_token_id', 'pixel_values']
    """

    def __init__(
        self,
        processor,
        chat_template: str | None = None,
        max_length: int | None = None,
        generate: bool = False,
        record_tokens: Collection[str] = (),
    ) -> None:
        self.processor = TRANSFORMS.build(processor) if isinstance(processor, dict) else processor
        self.tokenizer = self.processor.tokenizer
        if not self.tokenizer.is_fast:
            raise ValueError(
                f'EncodeConversation: {type(self.tokenizer).__name__} gives no character offsets, which labels come '
                'from; load the processor with a fast tokenizer (use_fast=True).'
            )
        if max_length is not None:
            allowed = 'at least 1, or None.'
            check_number('EncodeConversation: max_length', max_length, allowed, least=1, integer=True)
        self.template = find_chat_template(self.processor, chat_template)
        self.image_tokens = ImageTokens(self.processor)
        self.record_tokenizer = RecordTokenizer(self.tokenizer, self.image_tokens.replaced, record_tokens)
        self.max_length = max_length
        self.generate = generate

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Encode a record.

        Args:
            results (dict): A record: ``messages``, ``images``, optionally ``rejected`` and ``rejected_images`` (those
                of the rejected messages; without, they are the same), ``source`` and others.

        Returns:
            dict: ``inputs`` with ``input_ids``, ``attention_mask`` and, unless for generation, ``labels`` (-100 where
            nothing is learnt), each [L] int64; ``token_type_ids`` [L] (PaliGemma); the processor's image tensors;
            ``original_sizes`` [n, 2], height and width in pixels of each image; ``pad_token_id``; ``rejected``, a dict
            with the tokens of the rejected answer, and with image tensors and ``original_sizes`` if it has its own
            images. ``data_samples`` has all other entries of the record as fields, except names that a DataSample uses
            itself.
        """
        try:
            inputs, fields = self._encode(results)
        except RecordError as error:
            raise RecordError(f'{results.get("source", "record")}: {error}') from error
        return dict(inputs=inputs, data_samples=data_sample(fields))

    def _encode(self, record: dict) -> tuple[dict, dict]:
        fields = {key: value for key, value in record.items() if key not in RECORD_KEYS}
        messages, images = record['messages'], list(record['images'])
        rejected = None if self.generate else record.get('rejected')
        if self.generate and messages[-1]['role'] == 'assistant':
            fields.setdefault('gt_answer', text_of(messages[-1]))
            messages = messages[:-1]
        if rejected is not None and any(turns[-1].get('train') is False for turns in (messages, rejected)):
            raise RecordError('the last answers of a preference pair are what it trains; one of them has train=False')

        inputs, num_kept, shared = self._encode_one(messages, images, last_only=rejected is not None)
        inputs['pad_token_id'] = pad_token_id(self.tokenizer)
        if rejected is not None and record.get('rejected_images') is not None:
            inputs['rejected'], *_ = self._encode_one(rejected, list(record['rejected_images']), last_only=True)
        elif rejected is not None:
            text = self._write(rejected, len(images), last_only=True)
            inputs['rejected'], num_also_kept = self._finish(text, shared)
            if num_kept != num_also_kept:
                raise RecordError(f'max_length={self.max_length} leaves different images to the two answers')
        return inputs, fields

    def _encode_one(
        self, messages: Sequence[dict], images: Sequence[Image.Image], last_only: bool
    ) -> tuple[dict, int, list[list[int]]]:
        """Encode one conversation: its tensors, how many images are left, and the tokens of each image."""
        text = self._write(messages, len(images), last_only)
        expansions: list[list[int]] = []
        tensors: dict[str, Any] = {}
        if images:
            expansions, tensors = self.image_tokens.process(
                text.harmless, text.harmless_ids, images, text.special_tokens
            )
        inputs, num_kept = self._finish(text, expansions)
        if num_kept == 1 < len(images) and self.image_tokens.family.tiles_single_images:
            # The image that is left has tiles, and more tokens.
            expansions[:1] = self.image_tokens.expansions(images[:1])
            inputs, num_kept = self._finish(text, expansions)
        if num_kept < len(images):
            tensors = self.image_tokens.tensors(images[:num_kept]) if num_kept else {}
        inputs.update(tensors, original_sizes=_sizes(images[:num_kept]))
        return inputs, num_kept, expansions

    def _write(self, messages: Sequence[dict], num_images: int, last_only: bool) -> _Text:
        """Write and tokenize a conversation, and find its answers."""
        written = self.template.write(list(messages), self.generate)
        written = written.with_images(self.image_tokens.placeholder, self.image_tokens.in_text)
        trained = [message.get('train') is not False for message in messages if message['role'] == 'assistant']
        if len(written.answers) != len(trained):
            raise ValueError(
                f'EncodeConversation: the chat template {self.template.name!r} marks {len(written.answers)} of '
                f'{len(trained)} answers; put {{% generation %}} ... {{% endgeneration %}} around each.'
            )
        spans = [span for span, kept in zip(written.answers, trained) if kept]
        tokens, num_prefix, special = self._tokenize(written)
        found = tokens.ids.count(self.image_tokens.token_id)
        if found != num_images:
            raise RecordError(
                f'the conversation has {num_images} images, and the chat template {self.template.name!r} writes '
                f'{found} times {self.image_tokens.token}'
            )
        starts, ends = np.array(tokens.offsets).reshape(-1, 2).T
        labelled = np.zeros(len(tokens.ids), dtype=bool)
        # Tokens without characters (starts == ends) are added by the tokenizer and are no part of an answer.
        for first, last in spans[-1:] if last_only else spans:
            labelled |= (starts < last) & (ends > first) & (starts < ends)
        in_suffix = np.arange(len(tokens.ids)) >= num_prefix
        return _Text(tokens.harmless, tokens.harmless_ids, tokens.ids, labelled, in_suffix, special)

    def _tokenize(self, written: WrittenConversation) -> tuple[Tokens, int, bool]:
        """The tokens of a conversation, how many are of PaliGemma's prefix, and whether the tokenizer added some."""
        text, is_record = written.text, written.is_record
        bos = self.tokenizer.bos_token
        has_bos = bool(bos) and text.startswith(bos) and not is_record[: len(bos)].any()
        special = not self.image_tokens.family.is_prefix_model and not has_bos
        # PaliGemma tokenizes prefix and suffix one by one: a prompt has the same tokens with and without an answer.
        cut = written.answers[0][0] if self.image_tokens.family.is_prefix_model and written.answers else len(text)
        tokens = self.record_tokenizer(text[:cut], is_record[:cut], special)
        num_prefix = len(tokens.ids)
        if cut < len(text):
            tokens = tokens.then(self.record_tokenizer(text[cut:], is_record[cut:], False), cut)
        return tokens, num_prefix, special

    def _finish(self, text: _Text, expansions: Sequence[Sequence[int]]) -> tuple[dict, int]:
        """Put the images in and cut to length: the token tensors, and how many images are left."""
        is_image = np.array(text.ids) == self.image_tokens.token_id
        lengths = np.ones(len(text.ids), dtype=int)
        lengths[is_image] = [len(tokens) for tokens in expansions]
        length, num_kept = self._cut(text.ids, is_image, lengths)
        ids = torch.tensor(expand(text.ids, self.image_tokens.token_id, expansions)[:length])
        inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        if self.image_tokens.family.is_prefix_model:
            inputs['token_type_ids'] = torch.from_numpy(np.repeat(text.in_suffix, lengths)[:length]).long()
        if not self.generate:
            labelled = torch.from_numpy(np.repeat(text.labelled, lengths)[:length])
            if not labelled.any():
                raise RecordError(
                    f'all answers are cut off by max_length={self.max_length}'
                    if text.labelled.any()
                    else 'the conversation has no answer to learn from'
                )
            inputs['labels'] = torch.where(labelled, ids, IGNORE_INDEX)
        return inputs, num_kept

    def _cut(self, ids: Sequence[int], is_image: np.ndarray, lengths: np.ndarray) -> tuple[int, int]:
        """How many tokens fit into ``max_length`` without cutting an image, and how many images are among them."""
        ends = lengths.cumsum()
        if self.max_length is None or ends[-1] <= self.max_length:
            return int(ends[-1]), int(is_image.sum())
        if self.generate:
            raise RecordError(
                f'the prompt has {ends[-1]} tokens, more than max_length={self.max_length}; a cut prompt asks nothing'
            )
        length, num_kept = self.max_length, 0
        for place in np.flatnonzero(is_image).tolist():
            # The frame of an image goes with it: without the image, it would announce one that is missing.
            first = place - (place > 0 and ids[place - 1] == self.image_tokens.start_id)
            last = place + (place + 1 < len(ids) and ids[place + 1] == self.image_tokens.end_id)
            if ends[last] > length:
                return min(length, int(ends[first] - lengths[first])), num_kept
            num_kept += 1
        return length, num_kept


def _sizes(images: Sequence[Image.Image]) -> torch.Tensor:
    return torch.tensor([(image.height, image.width) for image in images], dtype=torch.long).reshape(-1, 2)
