"""Encodes a prompt and its image, from which a unified model learns to generate images."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from PIL import Image, ImageOps

from ...families.base import family_of
from ...utils.text import RecordError
from ..conversations.chat_template import find_chat_template, placeholder_of
from .record_tokenizer import RecordTokenizer, data_sample, pad_token_id


@TRANSFORMS.register_module()
class EncodeGeneration(BaseTransform):
    """Encodes a text-to-image record for Janus or Emu3, as the family's processor encodes prompts for generation.

    The tokens are those of the prompt up to and including the one after which image tokens begin: of Janus a turn of
    the chat template and ``<begin_of_image>``, of Emu3 ``<bos>``, the prompt, the image's start and its size in
    tokens. A prompt is text, whatever tokens it names (:class:`RecordTokenizer`). The image is resized to cover a
    square, cropped around its middle, and scaled to [-1, 1], as the VQ models of both want it.

    Args:
        processor (dict | ProcessorMixin): A transformers processor (Janus or Emu3), or how to build one:
            ``dict(type='transformers.AutoProcessor.from_pretrained', pretrained_model_name_or_path=...)``.
        image_size (int, optional): Height and width of the target in pixels. Defaults to None: Janus' processor has
            it (384); 720 for Emu3.
        max_length (int, optional): Tokens of a prompt at most; a record with a longer prompt is refused. Defaults to
            None, which means no limit.
        generate (bool): Whether to encode only the prompt, for evaluation. Defaults to False.

    Raises:
        ValueError: If the processor is of another family, or Emu3's tokens do not fill the image size.
        RecordError: If a prompt is longer than ``max_length``, or there is no image.

    Examples:
        >>> encode = EncodeGeneration(processor, max_length=256)
        >>> sorted(encode(dict(prompt='a red ring', images=[image]))['inputs'])
        ['attention_mask', 'input_ids', 'pad_token_id', 'target_images', 'task']
    """

    def __init__(
        self, processor, image_size: int | None = None, max_length: int | None = None, generate: bool = False
    ) -> None:
        self.processor = TRANSFORMS.build(processor) if isinstance(processor, dict) else processor
        prompt = family_of(self.processor).image_prompt(self.processor, image_size)
        if prompt is None:
            raise ValueError(
                f'EncodeGeneration: {type(self.processor).__name__} belongs to no model that generates images; use the '
                'processor of Janus (JanusProcessor) or Emu3 (Emu3Processor).'
            )
        self.prompt, self.image_size = prompt, prompt.image_size
        # The preamble, a system prompt, belongs to questions about images.
        self.template = replace(find_chat_template(self.processor), preamble='') if prompt.is_turn else None
        self.record_tokenizer = RecordTokenizer(self.processor.tokenizer, {placeholder_of(self.processor)})
        self.max_length = max_length
        self.generate = generate

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Encode a record.

        Args:
            results (dict): A record: ``prompt`` (str), ``images`` (one PIL image in RGB; none needed with
                ``generate=True``), optionally ``source`` and others.

        Returns:
            dict: ``inputs`` with ``input_ids`` and ``attention_mask`` [L] int64, ``target_images`` [3, H, W] float32
            in [-1, 1], ``pad_token_id`` and ``task='gen'``; ``data_samples`` with all other entries of the record as
            fields.
        """
        try:
            inputs = self._inputs(results['prompt'], results['images'])
        except RecordError as error:
            raise RecordError(f'{results.get("source", "record")}: {error}') from error
        fields = {key: value for key, value in results.items() if key != 'images'}
        return dict(inputs=inputs, data_samples=data_sample(fields))

    def _inputs(self, prompt: str, images: list[Image.Image]) -> dict[str, Any]:
        ids = self.encode(prompt)
        if self.max_length is not None and len(ids) > self.max_length:
            raise RecordError(f'the prompt has {len(ids)} tokens, more than max_length={self.max_length}')
        inputs = dict(input_ids=torch.tensor(ids), attention_mask=torch.ones(len(ids), dtype=torch.long))
        if not self.generate:
            if len(images) != 1:
                raise RecordError(f'learning to generate needs one image, found {len(images)}')
            inputs['target_images'] = self._target(images[0])
        return inputs | dict(pad_token_id=pad_token_id(self.processor.tokenizer), task='gen')

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt, up to and including the one after which the image begins.

        Args:
            prompt (str): What the image should show.

        Raises:
            RecordError: If the chat template cannot write the prompt.
            RuntimeError: If the processor writes other tokens around the prompt than its release does.
        """
        text, is_record, options = prompt, np.ones(len(prompt), dtype=bool), dict(self.prompt.options)
        special = True
        if self.template is not None:
            message = dict(role='user', content=[dict(type='text', text=prompt)])
            written = self.template.write([message], generation_prompt=True)
            text, is_record = written.text, written.is_record
            bos = self.processor.tokenizer.bos_token
            options['add_special_tokens'] = special = not (bos and text.startswith(bos))
        front, back = self.prompt.before, self.prompt.after
        is_record = np.concatenate([np.zeros(len(front), bool), is_record, np.zeros(len(back), bool)])
        tokens = self.record_tokenizer(front + text + back, is_record, special)
        # The processor's own call, with what names no token, has to give the same tokens.
        harmless = tokens.harmless[len(front) : len(front) + len(text)]
        found = list(self.processor(text=[harmless], **options)['input_ids'][0])
        if found != tokens.harmless_ids:
            raise RuntimeError(
                f'EncodeGeneration: {type(self.processor).__name__} writes around a prompt what its release does not '
                f'({len(found)} tokens, expected {len(tokens.harmless_ids)}).'
            )
        return tokens.ids

    def _target(self, image: Image.Image) -> torch.Tensor:
        size = (self.image_size, self.image_size)
        pixels = np.asarray(ImageOps.fit(image, size, Image.Resampling.BICUBIC), dtype=np.float32)
        return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).contiguous()
