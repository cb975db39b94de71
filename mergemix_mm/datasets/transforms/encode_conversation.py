"""From a conversation to the model's input: tokens, labels of the answers only, and image tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from PIL import Image

from ..conversation_formats import text_of
from ..record_error import RecordError
from .chat_template import find_chat_template
from .image_tokens import ImageTokens, expand
from .sample import data_sample, pad_token_id

IGNORE_INDEX = -100


@dataclass
class _Text:
    """A written conversation before its images are put in: one entry per token, placeholders as they are."""

    text: str
    ids: list[int]
    labelled: np.ndarray
    in_suffix: np.ndarray
    special_tokens: bool


@TRANSFORMS.register_module()
class EncodeConversation(BaseTransform):
    """Encodes a record for a vision-language model of transformers.

    The conversation is written with a chat template that marks its answers (:func:`find_chat_template`). Labels come
    from the marks' character offsets: an answer's tokens and the end-of-turn token that closes it are labelled,
    nothing else. The processor's own call puts the images in; that everything else stayed in place is checked to
    the token.

    PaliGemma has one prefix (images, ``<bos>``, prompt, line break: ``token_type_ids`` 0) and one suffix (answer,
    ``<eos>``: 1), each tokenized for itself. With several turns, all that follows the first answer is suffix, which
    the model attends to causally, and only answers are labelled.

    A preference pair labels the last answers alone, which is where they differ.

    Args:
        processor (dict | ProcessorMixin): A transformers processor, or how to build one:
            ``dict(type='transformers.AutoProcessor.from_pretrained', pretrained_model_name_or_path=...)``. Its
            tokenizer must be a fast one.
        chat_template (str, optional): A template of the repository (``llava``, ``llava_next``, ``paligemma``,
            ``internvl``, ``smolvlm``, ``qwen2_5_vl``, ``janus``, ``emu3``; ``plain`` for aligning a projector on
            captions; ``question_first``, that is ``llava`` with the images behind the question), or a path. Defaults to
            None: the processor's own, or the repository's for its family.
        max_length (int, optional): Tokens of a sample at most, those of images included. An image that does not fit
            wholly is dropped, with all that follows. Defaults to None, which means no limit.
        generate (bool): Whether to encode the prompt of the last answer only, for evaluation. The answer becomes
            ``gt_answer``, unless the record has one. Defaults to False.

    Raises:
        ValueError: If no template fits, the tokenizer is not a fast one, or ``max_length`` is below 1.
        RecordError: If the text holds a literal image token, ``max_length`` leaves no answer, or (with
            ``generate=True``) no room for the prompt.

    Examples:
        >>> encode = EncodeConversation(dict(type='ShapesProcessor'), max_length=256)
        >>> sample = encode(dataset.get_data_info(0))
        >>> sorted(sample['inputs'])
        ['attention_mask', 'input_ids', 'labels', 'original_sizes', 'pad_token_id', 'pixel_values']
    """

    def __init__(
        self, processor, chat_template: str | None = None, max_length: int | None = None, generate: bool = False
    ) -> None:
        self.processor = TRANSFORMS.build(processor) if isinstance(processor, dict) else processor
        self.tokenizer = self.processor.tokenizer
        if not self.tokenizer.is_fast:
            raise ValueError(
                f'EncodeConversation: {type(self.tokenizer).__name__} gives no character offsets, which labels come '
                'from; load the processor with a fast tokenizer (use_fast=True).'
            )
        if max_length is not None and max_length < 1:
            raise ValueError(f'EncodeConversation: max_length={max_length!r} must be at least 1, or None.')
        self.template = find_chat_template(self.processor, chat_template)
        self.image_tokens = ImageTokens(self.processor)
        self.max_length = max_length
        self.generate = generate

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Encode a record.

        Args:
            results (dict): A record: ``messages``, ``images``, optionally ``rejected``, ``source`` and others.

        Returns:
            dict: ``inputs`` with ``input_ids``, ``attention_mask`` and, unless for generation, ``labels`` (-100 where
            nothing is learnt), each [L] int64; ``token_type_ids`` [L] (PaliGemma); the processor's image tensors;
            ``original_sizes`` [n, 2], height and width in pixels of each image; ``pad_token_id``; ``rejected``, a dict
            with the tokens of the rejected answer. ``data_samples`` with all other entries of the record as fields
            (but for names that a DataSample has itself).
        """
        try:
            inputs, fields = self._encode(results)
        except RecordError as error:
            raise RecordError(f'{results.get("source", "record")}: {error}') from error
        return dict(inputs=inputs, data_samples=data_sample(fields))

    def _encode(self, record: dict) -> tuple[dict, dict]:
        fields = {key: value for key, value in record.items() if key not in ('messages', 'images', 'rejected')}
        messages, images = record['messages'], list(record['images'])
        rejected = None if self.generate else record.get('rejected')
        if self.generate and messages[-1]['role'] == 'assistant':
            fields.setdefault('gt_answer', text_of(messages[-1]))
            messages = messages[:-1]

        text = self._write(messages, len(images), last_only=rejected is not None)
        expansions, tensors = [], {}
        if images:
            expansions, tensors = self.image_tokens.process(text.text, text.ids, images, text.special_tokens)
        inputs, num_kept = self._finish(text, expansions)
        if rejected is not None:
            text = self._write(rejected, len(images), last_only=True)
            inputs['rejected'], num_also_kept = self._finish(text, expansions)
            if num_kept != num_also_kept:
                raise RecordError(f'max_length={self.max_length} leaves different images to the two answers')
        if num_kept < len(images):
            tensors = self.image_tokens.tensors(images[:num_kept]) if num_kept else {}
        inputs.update(tensors, original_sizes=_sizes(images[:num_kept]), pad_token_id=pad_token_id(self.tokenizer))
        return inputs, fields

    def _write(self, messages: Sequence[dict], num_images: int, last_only: bool) -> _Text:
        """Write and tokenize a conversation, and find its answers."""
        text, spans = self.template.render(list(messages), self.generate)
        num_answers = sum(message['role'] == 'assistant' for message in messages)
        if len(spans) != num_answers:
            raise ValueError(
                f'EncodeConversation: the chat template {self.template.name!r} marks {len(spans)} of {num_answers} '
                'answers; put {% generation %} ... {% endgeneration %} around each, behind other text.'
            )
        bos = self.tokenizer.bos_token
        special = not self.image_tokens.is_prefix_family and not (bos and text.startswith(bos))
        # Prefix and suffix of PaliGemma are tokenized as a pair.
        cut = spans[0][0] if self.image_tokens.is_prefix_family and spans else len(text)
        ids, offsets = self._tokenize(text[:cut], 0, special)
        num_prefix = len(ids)
        if cut < len(text):
            more_ids, more_offsets = self._tokenize(text[cut:], cut, False)
            ids, offsets = ids + more_ids, offsets + more_offsets
        found = ids.count(self.image_tokens.token_id)
        if found != num_images:
            raise RecordError(
                f'the conversation has {num_images} images, but its text holds {found} times {self.image_tokens.token}'
            )
        starts, ends = np.array(offsets).reshape(-1, 2).T
        labelled = np.zeros(len(ids), dtype=bool)
        for first, last in spans[-1:] if last_only else spans:
            labelled |= (starts < last) & (ends > first) & (starts < ends)
        return _Text(text, ids, labelled, np.arange(len(ids)) >= num_prefix, special)

    def _tokenize(self, text: str, start: int, special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True)
        return encoded['input_ids'], [(start + first, start + last) for first, last in encoded['offset_mapping']]

    def _finish(self, text: _Text, expansions: Sequence[Sequence[int]]) -> tuple[dict, int]:
        """Put the images in and cut to length: the token tensors, and how many images are left."""
        is_image = np.array(text.ids) == self.image_tokens.token_id
        lengths = np.ones(len(text.ids), dtype=int)
        lengths[is_image] = [len(tokens) for tokens in expansions]
        length, num_kept = self._cut(text.ids, is_image, lengths)
        ids = torch.tensor(expand(text.ids, self.image_tokens.token_id, expansions)[:length])
        inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        if self.image_tokens.is_prefix_family:
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
        for place in np.flatnonzero(is_image):
            first = place - (place > 0 and ids[place - 1] == self.image_tokens.start_id)
            last = place + (place + 1 < len(ids) and ids[place + 1] == self.image_tokens.end_id)
            if ends[last] > length:
                return min(length, int(ends[first] - lengths[first])), num_kept
            num_kept += 1
        return length, num_kept


def _sizes(images: Sequence[Image.Image]) -> torch.Tensor:
    return torch.tensor([(image.height, image.width) for image in images], dtype=torch.long).reshape(-1, 2)
