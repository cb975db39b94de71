"""LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next): a thumbnail, and tiles of a padded image."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import IMAGE, MARKER, Family, ImageInput, square_image
from .layout import join_tiles, split_canvas


@dataclass
class Layout:
    """How one image is cut, and which tokens stand for it.

    Args:
        grid (tuple[int, int]): Rows and columns of its tiles.
        pixels (tuple[slice, slice]): The rows and columns of the joined tiles that are not padding.
        num_base (int): Tokens of the thumbnail.
        num_rows (int): Rows of tokens of the tiles, each of which ends in a new line.
        num_columns (int): Tokens of a row before its new line.
        has_thumbnail (bool): Whether a thumbnail comes before the tiles. Defaults to True.
    """

    grid: tuple[int, int]
    pixels: tuple[slice, slice]
    num_base: int
    num_rows: int
    num_columns: int
    has_thumbnail: bool = True

    def __len__(self) -> int:
        """Number of tokens."""
        return self.num_base + self.num_rows * (self.num_columns + 1)

    @property
    def num_views(self) -> int:
        """Tiles and thumbnail."""
        return math.prod(self.grid) + self.has_thumbnail

    @property
    def newlines(self) -> Tensor:
        """Which tokens of the image are new lines: base tokens, then rows that end in one each; [tokens] bool."""
        row = torch.arange(self.num_columns + 1) == self.num_columns
        return torch.cat([torch.zeros(self.num_base, dtype=torch.bool), row.repeat(self.num_rows)])


class LlavaNextFamily(Family):
    """``LlavaNextForConditionalGeneration``: ``pixel_values`` [N, most tiles of an image + 1, 3, h, w], zeros after
    the tiles, and ``image_sizes`` [N, 2], the original heights and widths.

    A canvas is the image at its best resolution, joined from its tiles, padding included.
    """

    model_types = ('llava_next',)
    processors = ('LlavaNextProcessor',)
    chat_template = 'llava_next'
    # It pads without the option: a wide image that it has resized to 3 rows would become an image of 3 columns.
    array_image_processors = ('LlavaNextImageProcessor',)
    parts = Family.parts | dict(projector=('model.multi_modal_projector', 'model.image_newline'))
    forward_keys = (*Family.forward_keys, 'image_sizes')
    pixel_shape = ('images', 'views', 3, 'height', 'width')

    def image_lengths(self, batch: dict) -> Tensor:
        return batch['input_ids'].new_tensor([len(layout) for layout in self._layouts(batch)])

    def modality(self, batch: dict) -> Tensor:
        result = super().modality(batch)
        newlines = [layout.newlines for layout in self._layouts(batch)]
        if newlines:
            kinds = torch.where(torch.cat(newlines).to(result.device), MARKER, IMAGE)
            result = result.masked_scatter(self.placeholders(batch), kinds)
        return result

    def canvases(self, batch: dict) -> list[Tensor]:
        return [join_tiles(tiles, layout.grid) for tiles, _, layout in self._views(batch)]

    def with_canvases(self, batch: dict, canvases: list[Tensor]) -> dict:
        """As in the base class. The thumbnail is the part of a canvas that is not padding, resized bicubically.

        The processor makes it of the original file, which a changed canvas does not have. The thumbnail of an
        unchanged canvas stays.
        """
        self.check_canvases(canvases, batch)
        if not canvases:
            return dict(batch)
        images = []
        for canvas, (old, thumbnails, layout) in zip(canvases, self._views(batch), strict=True):
            tiles = split_canvas(canvas, layout.grid)
            if len(thumbnails) and not torch.equal(tiles, old):
                thumbnails = _resize(canvas[(slice(None), *layout.pixels)], thumbnails)
            views = torch.cat([thumbnails, tiles])
            # Images of a batch have the same number of tiles: zeros fill up the smaller ones.
            images.append(F.pad(views, (0, 0) * 3 + (0, batch['pixel_values'].size(1) - len(views))))
        return {**batch, 'pixel_values': torch.stack(images)}

    def largest_image(self, processor: dict) -> ImageInput:
        side = self.model.config.vision_config.image_size
        sizes = self._planned_sizes()
        layouts = [self._layout(*size) for size in sizes]
        layout, (height, width) = max(zip(layouts, sizes, strict=True), key=lambda one: (self._weight(one[0]), one[1]))
        image = square_image(len(layout), self.image_token_id, side)
        image.shapes = lambda size: dict(pixel_values=(size, layout.num_views, 3, side, side))
        image.values['image_sizes'] = [height, width]
        return image

    def _planned_sizes(self) -> list[list[int]]:
        """Heights and widths among which the largest image is found: those of the grids."""
        return self.model.config.image_grid_pinpoints

    def _weight(self, layout: Layout) -> int:
        """What the largest image has most of."""
        return len(layout)

    def _views(self, batch: dict) -> Iterator[tuple[Tensor, Tensor, Layout]]:
        """Tiles [n, 3, h, w], thumbnail [1 or 0, 3, h, w] and layout of each image."""
        for views, layout in zip(batch.get('pixel_values', ()), self._layouts(batch)):
            first = int(layout.has_thumbnail)
            yield views[first : layout.num_views], views[:first], layout

    def _layouts(self, batch: dict) -> list[Layout]:
        if self.pixels(batch) is None:
            return []
        return [self._layout(*size) for size in batch['image_sizes'].tolist()]

    def _layout(self, height: int, width: int) -> Layout:
        from transformers.image_processing_utils import select_best_resolution

        tile, side = self.model.config.vision_config.image_size, self._side
        best = select_best_resolution((height, width), self.model.config.image_grid_pinpoints)
        grid = best[0] // tile, best[1] // tile
        rows, columns = _unpadded_tokens((height, width), (grid[0] * side, grid[1] * side))
        return Layout(grid, _unpadded_pixels((height, width), best), self._num_base, rows, columns)

    @property
    def _side(self) -> int:
        """Patches on a side of a tile."""
        config = self.model.config.vision_config
        return config.image_size // config.patch_size

    @property
    def _num_base(self) -> int:
        """Tokens of a thumbnail: its patches, and the class token unless it is left out."""
        return self._side**2 + (self.model.config.vision_feature_select_strategy != 'default')


def _unpadded_pixels(size: tuple[int, int], best: tuple[int, int]) -> tuple[slice, slice]:
    """Where the processor puts an image of this size on its canvas: rows, columns."""
    # The processor keeps the aspect ratio, rounds up, and centres the image.
    scale = min(best[0] / size[0], best[1] / size[1])
    used = [min(math.ceil(length * scale), room) for length, room in zip(size, best)]
    starts = [(room - length) // 2 for length, room in zip(used, best)]
    rows, columns = (slice(start, start + length) for start, length in zip(starts, used))
    return rows, columns


def _unpadded_tokens(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns of patches the model keeps of the whole grid."""
    (height, width), (rows, columns) = size, grid
    # The library compares the ratios and rounds to 7 digits: its counts must be met to the token.
    if width / height > columns / rows:
        return rows - (rows - int(round(height * (columns / width), 7))) // 2 * 2, columns
    return rows, columns - (columns - int(round(width * (rows / height), 7))) // 2 * 2


def _resize(part: Tensor, like: Tensor) -> Tensor:
    """A part of a canvas [3, h, w] at the size and in the dtype of the thumbnail `like` [1, 3, H, W]."""
    return F.interpolate(part[None].float(), like.shape[-2:], mode='bicubic', antialias=True).to(like.dtype)
