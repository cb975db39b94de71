"""InternVL (https://arxiv.org/abs/2504.10479): tiles of an image and its thumbnail between two framing tokens."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Family, ImageInput, square_image
from .layout import canvas_to_views, mark_frames, runs, views_to_canvas
from .towers import Dinov2Encoder
from .vision_encoder import EncoderLayer, split_heads

# Tiles of an image that the processor cuts at most, without the thumbnail.
MAX_TILES = 12


class InternVLLayer(EncoderLayer):
    """`InternVLVisionLayer`: layer scale, optional norms of queries and keys, a dropout after both branches."""

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, x = self.module.attention, self.module.layernorm_before(x)
        projections = attn.q_norm(attn.q_proj(x)), attn.k_norm(attn.k_proj(x)), attn.v_proj(x)
        query, key, value = (split_heads(projection, attn.num_heads) for projection in projections)
        return query, key, value

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        layer, attn = self.module, self.module.attention
        return x + layer.lambda_1 * attn.projection_dropout(attn.projection_layer(attended))

    def feed_forward(self, x: Tensor) -> Tensor:
        layer = self.module
        return x + layer.lambda_2 * layer.dropout(layer.mlp(layer.layernorm_after(x)))

    @property
    def attention_dropout(self) -> float:
        return self.module.attention.attention_dropout


class InternVLEncoder(Dinov2Encoder):
    """`InternVLVisionModel`: embeds as DINOv2 does; the norm after the layers may be an identity."""

    layer_type: type[EncoderLayer] = InternVLLayer
    layer_name = 'InternVLVisionLayer'

    def _embeddings(self, images: Tensor) -> Tensor:
        embedded = self.model.embeddings(images)
        return embedded if isinstance(embedded, Tensor) else embedded[0]  # With the grid in transformers 4.


class InternVLFamily(Family):
    """``InternVLForConditionalGeneration``: ``pixel_values`` [tiles of all images, 3, h, w].

    An image is one run of placeholders, so its number of tiles is known from the text; their grid is the one of that
    many tiles whose aspect ratio is the nearest to the image's own, from ``original_sizes``.
    """

    model_types = ('internvl',)
    processors = ('InternVLProcessor',)
    chat_template = 'internvl'
    tower_adapters = {'transformers.models.internvl.modeling_internvl.InternVLVisionModel': InternVLEncoder}

    @property
    def tile_length(self) -> int:
        """Number of placeholders of one tile: each token stands for a square of patches."""
        config = self.model.config
        (height, width), (rows, cols) = config.vision_config.image_size, config.vision_config.patch_size
        return round((height // rows) * (width // cols) * config.downsample_ratio**2)

    def image_lengths(self, batch: dict) -> Tensor:
        return self._check_lengths(runs(self.placeholders(batch))[:, 2], batch)

    def _check_lengths(self, lengths: Tensor, batch: dict) -> Tensor:
        """Refuse images whose numbers of tokens, [N], are not those of the tiles."""
        pixels = self.pixels(batch)
        tiles = 0 if pixels is None else len(pixels)
        if (lengths % self.tile_length).any() or lengths.sum() != tiles * self.tile_length:
            raise ValueError(
                f'images of {lengths.tolist()} tokens in input_ids do not fit the {tiles} tiles of {self.tile_length} '
                'tokens in pixel_values. Texts and images of a batch must come from one call of the processor, and '
                'truncation must not cut image tokens: raise max_length'
            )
        return lengths

    def modality(self, batch: dict) -> Tensor:
        return mark_frames(super().modality(batch))

    def canvases(self, batch: dict) -> list[Tensor]:
        return [views_to_canvas(views, grid) for views, grid in self._views(batch)]

    def with_canvases(self, batch: dict, canvases: list[Tensor]) -> dict:
        self.check_canvases(canvases, batch)
        if not canvases:
            return dict(batch)
        views = [canvas_to_views(canvas, *old) for canvas, old in zip(canvases, self._views(batch), strict=True)]
        return {**batch, 'pixel_values': torch.cat(views)}

    def largest_image(self, processor: dict) -> ImageInput:
        return self._largest_tiles(processor, *self.model.config.vision_config.image_size)

    def _largest_tiles(self, processor: dict, height: int, width: int) -> ImageInput:
        """As many tiles of this size as the processor cuts, as one run of placeholders."""
        tiles = processor.get('max_patches') or MAX_TILES
        columns = next(number for number in range(math.isqrt(tiles), 0, -1) if tiles % number == 0)
        views = tiles + (tiles > 1)  # With the thumbnail.
        image = square_image(views * self.tile_length, self.image_token_id, height)
        image.shapes = lambda size: dict(pixel_values=(size * views, 3, height, width))
        image.values['original_sizes'] = [height * (tiles // columns), width * columns]
        return image

    def _views(self, batch: dict) -> list[tuple[Tensor, tuple[int, int]]]:
        """Tiles and thumbnail [n, 3, h, w] of each image, and the grid of its tiles."""
        pixels = self.pixels(batch)
        if pixels is None:
            return []
        counts = (self.image_lengths(batch) // self.tile_length).tolist()
        sizes = batch.get('original_sizes')
        if sizes is None and any(count > 1 for count in counts):
            raise ValueError(
                f'the images of the batch have {counts} tiles, thumbnails included, and their grids follow from '
                'the sizes of the images: add original_sizes [N, 2] (height, width) to the batch, as '
                'ConversationCollate does, or let the processor make one tile of an image (crop_to_patches=False)'
            )
        # The size does not matter for an image of one tile.
        sizes = [(1, 1)] * len(counts) if sizes is None else sizes.tolist()
        grids = [
            tile_grid(height, width, count, pixels.shape[-2:])
            for (height, width), count in zip(sizes, counts, strict=True)
        ]
        return list(zip(pixels.split(counts), grids, strict=True))


def tile_grid(height: int, width: int, count: int, tile: Sequence[int]) -> tuple[int, int]:
    """The rows and columns into which InternVL's processor cuts an image.

    Args:
        height (int): Of the image, in pixels.
        width (int): Of the image, in pixels.
        count (int): Tiles of the image, thumbnail included.
        tile (Sequence[int]): Height and width of a tile, which decide between grids that fit equally well.

    Raises:
        ValueError: if `count` is impossible.
    """
    if count == 1:
        return 1, 1
    if count == 2:
        raise ValueError(
            'an image has 2 tiles, but a thumbnail needs at least two more: the texts are not of these images'
        )
    tiles = count - 1
    # The wider of two equal fits, unless its tiles had more than twice the image's area: then the narrower.
    wide = height * width > 0.5 * tile[0] * tile[1] * tiles
    grids = [(tiles // columns, columns) for columns in range(1, tiles + 1) if tiles % columns == 0]
    return min(grids[::-1] if wide else grids, key=lambda grid: abs(width / height - grid[1] / grid[0]))
