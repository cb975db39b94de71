"""Aya Vision (https://arxiv.org/abs/2505.08751): InternVL's tiles, each after a token with its number; Cohere 2."""

import re
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .base import ANY_WORD, MARKER, TEXT, Family, ImageInput
from .internvl import InternVLFamily
from .layout import runs

# The system turn in front of every conversation of a released chat template.
OPENING = re.compile(
    r'\{\{-?\s*bos_token\s*-?\}\}\s*(<\|START_OF_TURN_TOKEN\|><\|SYSTEM_TOKEN\|>[^{]*<\|END_OF_TURN_TOKEN\|>)'
)


class AyaVisionFamily(InternVLFamily):
    """``AyaVisionForConditionalGeneration``: ``pixel_values`` [tiles of all images, 3, h, w].

    Images are cut as InternVL's. In the text, a start token opens an image and an end token closes it. Between them,
    every tile is one run of placeholders after the token of its number; the last one is the thumbnail.

    As the library's model with images, this one does not multiply logits by the ``logit_scale`` of its text config.
    """

    model_types = ('aya_vision',)
    processors = ('AyaVisionProcessor',)
    chat_template = 'aya_vision'
    tower_adapters = {}

    @classmethod
    def image_token(cls, processor: Any) -> str:
        return processor.img_patch_token  # The placeholder may be none of the tokenizer's tokens.

    @classmethod
    def opening(cls, template: str) -> str:
        found = OPENING.match(template)
        return found.group(1) if found else ''

    @property
    def tile_length(self) -> int:
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        return (side // config.downsample_factor) ** 2

    def image_lengths(self, batch: dict) -> Tensor:
        tiles = runs(self.placeholders(batch))
        closing = self._closing(batch, tiles)
        image = closing.cumsum(0) - closing.long()  # An image ends with the tile that closes it.
        lengths = tiles.new_zeros(int(closing.sum())).index_add(0, image, tiles[:, 2])
        return self._check_lengths(lengths, batch)

    def modality(self, batch: dict) -> Tensor:
        result = Family.modality(self, batch)
        tiles = runs(self.placeholders(batch))
        first, opens = 0, True
        for (row, start, length), closes in zip(tiles.tolist(), self._closing(batch, tiles).tolist(), strict=True):
            # The start token and that of the first tile; whatever is between two tiles; the end token.
            first, last = max(start - 2, 0) if opens else first, start + length + closes
            span = result[row, first:last]
            span[span == TEXT] = MARKER
            first, opens = last, closes
        return result

    def largest_image(self, processor: dict) -> ImageInput:
        side = self.model.config.vision_config.image_size
        image = self._largest_tiles(processor, side, side)
        tile = [ANY_WORD, *[self.image_token_id] * self.tile_length]
        image.ids = [ANY_WORD, *tile * (image.num_tokens // self.tile_length), ANY_WORD + 1]
        return image

    def _closing(self, batch: dict, tiles: Tensor) -> Tensor:
        """Which runs of placeholders [R, 3] end an image, [R] bool.

        After them is the same token as after the last run of a sample.
        """
        rows, ends = tiles[:, 0], tiles[:, 1] + tiles[:, 2]
        after = F.pad(batch['input_ids'], (0, 1), value=-1)[rows, ends]
        last = rows != F.pad(rows, (0, 1), value=-1)[1:]
        return after == after[last][last.cumsum(0) - last.long()]
