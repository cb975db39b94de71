"""Emu3 (https://arxiv.org/abs/2409.18869): images are text, the ids of their VQ codes."""

import math
import re
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import IMAGE, MARKER, TEXT, ImageInput, ImagePrompt, square_image
from .layout import PaddedFamily
from .nearest_code import codebook_of, nearest_code

PLACEHOLDER, LINE_END = '<image>', '<|extra_200|>'
# Around an image: "START rows * columns CODES" codes and line ends "FILE_END END".
START, CODES, FILE_END, END = '<|image start|>', '<|image token|>', '<|extra_201|>', '<|image end|>'
# Side of generated images in pixels. The processor knows their area only as a default of its call.
GENERATED_SIZE = 720


class Emu3Family(PaddedFamily):
    """``Emu3ForConditionalGeneration``: ``pixel_values`` [N, 3, H, W], padded below and on the right, ``image_sizes``
    [N, 2] in pixels.

    An image of h x w codes has h * (w + 1) placeholders: each row of codes ends with a token of its own. Each image is
    encoded without its padding, so that its codes do not depend on the batch it is in. (The library also encodes the
    padding, and its model with head silently ignores the pixels.)

    Raises:
        ValueError: if the config's vocabulary map lacks what images are written with.
    """

    model_types = ('emu3',)
    processors = ('Emu3Processor',)
    chat_template = 'emu3'
    nests_images = True  # The processor resizes the images of one list alike.
    # Emu3 has neither a tower nor a projector, but `projector` is part of the default of `trainable`.
    parts = dict(projector=(), language_model=('model.text_model', 'lm_head'))

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        vocabulary = model.config.vocabulary_map or {}
        missing = [token for token in (PLACEHOLDER, LINE_END, START, CODES) if token not in vocabulary]
        if missing or len(self.code_ids) != model.config.vq_config.codebook_size:
            raise ValueError(
                f'config.vocabulary_map of {len(vocabulary)} tokens lacks {missing} or some of the '
                f'{model.config.vq_config.codebook_size} tokens of image codes, "<|visual token 000000|>" and so on: '
                'set it to the vocabulary of the tokenizer (tokenizer.get_vocab())'
            )

    @classmethod
    def preamble(cls, processor: Any) -> str:
        # The processor writes the first token once per image, and the tokenizer never writes it.
        return processor.bos_token

    @classmethod
    def image_processor(cls, processor: Any) -> Any:
        processor = super().image_processor(processor)
        processor.bos_token = ''
        return processor

    @classmethod
    def image_prompt(cls, processor: Any, image_size: int | None = None) -> ImagePrompt:
        size, factor = image_size or GENERATED_SIZE, processor.downsample_ratio
        if size % factor:
            raise ValueError(
                f'image_size={size} must be a multiple of {factor}, the side of an image token of Emu3 in pixels'
            )
        options = dict(ratio='1:1', image_area=size**2)
        rows, columns = processor.calculate_generate_size(spatial_factor=factor, **options)
        after = f'{processor.image_start_token}{rows}*{columns}{processor.fake_token_around_image}'
        options['return_for_image_generation'] = True
        return ImagePrompt(size, False, processor.bos_token, after, options)

    def complete_processor(self, processor: Any) -> None:
        processor.downsample_ratio = self.model.model.vqmodel.spatial_scale_factor

    @property
    def vision_encoder(self) -> None:
        """Emu3 has no tower."""
        return None

    @cached_property
    def code_ids(self) -> Tensor:
        """The vocabulary's id of each image code, [codebook size] int64, on the CPU."""
        mapping = self.model.model.vocabulary_mapping
        return mapping.img2bpe_mapping_tensor.long() if mapping.img2bpe else torch.empty(0, dtype=torch.long)

    @property
    def marker_ids(self) -> tuple[int, ...]:
        vocabulary = self.model.config.vocabulary_map
        return tuple(vocabulary[token] for token in (LINE_END, START, CODES, FILE_END, END) if token in vocabulary)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Normalised images [n, 3, H, W] -> their codes [n, H / factor, W / factor] int64, by the frozen VQ model.

        Raises:
            ValueError: if height or width is not a multiple of the VQ model's factor.
        """
        vq = self.model.model.vqmodel
        factor, size = vq.spatial_scale_factor, tuple(images.shape[-2:])
        if size[0] % factor or size[1] % factor:
            raise ValueError(
                f'images of {size[0]} x {size[1]} pixels: height and width must be multiples of {factor}, the factor '
                "of the model's VQ; resize them before"
            )
        # Low precision would move latents across the borders between codes.
        with torch.autocast(images.device.type, enabled=False):
            # The VQ model reads an image as a video of equal frames.
            frames = images.to(vq.dtype)[:, None].expand(-1, vq.config.temporal_downsample_factor, -1, -1, -1)
            latents = vq.quant_conv(vq.encoder(frames).transpose(1, 2)).squeeze(2)
            return nearest_code(latents, codebook_of(vq.quantize.embedding))

    def to_ids(self, codes: Tensor) -> Tensor:
        """Codes [n, h, w] -> the vocabulary's ids with line ends, [n, h * (w + 1)] int64."""
        ids = self.code_ids.to(codes.device)[codes]
        return F.pad(ids, (0, 1), value=self.model.config.vocabulary_map[LINE_END]).flatten(1)

    def announced_grid(self, ids: Tensor) -> tuple[int, int] | None:
        """Rows and columns of codes that the end of a prompt [L] announces; None if it announces no image."""
        vocabulary, words = self.model.config.vocabulary_map, ids.tolist()
        if not words or words[-1] != vocabulary[CODES] or vocabulary[START] not in words:
            return None
        start = len(words) - 1 - words[::-1].index(vocabulary[START])
        size = re.fullmatch(r'(\d+)\*(\d+)', ''.join(self._tokens.get(one, ' ') for one in words[start + 1 : -1]))
        return size and (int(size[1]), int(size[2]))

    @cached_property
    def _tokens(self) -> dict[int, str]:
        """The vocabulary from ids to tokens."""
        return {one: token for token, one in self.model.config.vocabulary_map.items()}

    def with_codes(self, batch: dict) -> Tensor:
        """``input_ids`` [B, L] with the ids of image codes instead of placeholders."""
        canvases = self.canvases(batch)
        self.owners(batch)  # Raises if the placeholders are not those of the images.
        if not canvases:
            return batch['input_ids']
        # Images of one size are encoded in one call. This does not change their codes.
        by_size: dict[tuple, list[int]] = {}
        for place, canvas in enumerate(canvases):
            by_size.setdefault(tuple(canvas.shape), []).append(place)
        ids: dict[int, Tensor] = {}
        for places in by_size.values():
            ids.update(zip(places, self.to_ids(self.encode(torch.stack([canvases[place] for place in places])))))
        return batch['input_ids'].masked_scatter(
            self.placeholders(batch), torch.cat([ids[place] for place in range(len(canvases))])
        )

    def image_lengths(self, batch: dict) -> Tensor:
        grids = self._grids(batch)
        return grids[:, 0] * (grids[:, 1] + 1)

    def modality(self, batch: dict) -> Tensor:
        """As in the base class. The size of an image and the ends of its rows are ``MARKER``."""
        ids, result = batch['input_ids'], super().modality(batch)
        start, codes = (ids == self.model.config.vocabulary_map[token] for token in (START, CODES))
        size = start.cumsum(dim=1) > codes.cumsum(dim=1)
        result[size & (result == TEXT)] = MARKER
        result[torch.isin(ids, self.code_ids.to(ids.device)) & (result == TEXT)] = IMAGE
        self.owners(batch)
        rows = [result.new_tensor([IMAGE] * columns + [MARKER]).repeat(rows) for rows, columns in self._grids(batch)]
        return result.masked_scatter(self.placeholders(batch), torch.cat(rows)) if rows else result

    def model_kwargs(self, batch: dict) -> dict:
        """What forward and generate take: text only."""
        mask = batch.get('attention_mask')
        return dict(input_ids=self.with_codes(batch)) | ({} if mask is None else dict(attention_mask=mask))

    def largest_image(self, processor: dict) -> ImageInput:
        config = self.model.config
        factor = 2 ** (len(config.vq_config.channel_multiplier) - 1)
        pixels = processor.get('max_pixels') or 1024 * 1024
        codes = math.isqrt(pixels) // factor
        side, num_tokens = codes * factor, codes * (codes + 1)
        image = square_image(num_tokens, config.image_token_id, side)
        # Start, "90*90", and the token before the codes; line ends are among the placeholders.
        image.ids[:0] = [config.vocabulary_map[name] for name in (START, LINE_END, CODES)]
        image.values['image_sizes'] = [side, side]
        return image

    def image_prompt_end(self, image_size: int | None = None) -> tuple[int, list[int]]:
        side, vocabulary = image_size or GENERATED_SIZE, self.model.config.vocabulary_map
        codes = side // self.model.model.vqmodel.spatial_scale_factor
        grid = [vocabulary[character] for character in f'{codes}*{codes}']
        return side, [vocabulary[START], *grid, vocabulary[CODES]]

    def _grids(self, batch: dict) -> Tensor:
        """Rows and columns of each image's codes, [N, 2] int64."""
        if self.pixels(batch) is None:
            return batch['input_ids'].new_empty(0, 2)
        return batch['image_sizes'] // self.model.model.vqmodel.spatial_scale_factor
