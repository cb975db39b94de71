"""LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next): a thumbnail, and tiles of a padded image."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import IMAGE, MARKER, Family, ImageInput, check_canvases, square_image
from .layout import join_tiles, split_canvas


@dataclass
class _Layout:
    """How one image is cut: `grid` tiles (rows, columns), and the part of the joined tiles that is not padding."""

    grid: tuple[int, int]
    pixels: tuple[slice, slice]
    num_base: int
    num_rows: int
    num_columns: int

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

    def image_lengths(self, batch: dict) -> Tensor:
        lengths = [len(layout.newlines) for layout in self._layouts(batch)]
        return batch['input_ids'].new_tensor(lengths)

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
        known = self.canvases(batch)
        check_canvases(canvases, known)
        if not canvases:
            return dict(batch)
        images = []
        for canvas, old, (_, thumbnail, layout) in zip(canvases, known, self._views(batch)):
            if not torch.equal(canvas, old):
                thumbnail = _resize(canvas[(slice(None), *layout.pixels)], thumbnail)
            views = torch.cat([thumbnail[None], split_canvas(canvas, layout.grid)])
            # Images of a batch have the same number of tiles: zeros fill up the smaller ones.
            images.append(F.pad(views, (0, 0) * 3 + (0, batch['pixel_values'].size(1) - len(views))))
        return {**batch, 'pixel_values': torch.stack(images)}

    def largest_image(self, processor: dict) -> ImageInput:
        config = self.model.config
        side = config.vision_config.image_size
        # An image of one of the sizes that it is cut at: the one with most tokens.
        sizes = torch.tensor(config.image_grid_pinpoints)
        lengths = self.image_lengths(dict(input_ids=sizes, pixel_values=sizes, image_sizes=sizes)).tolist()
        num_tokens, (height, width) = max(zip(lengths, sizes.tolist(), strict=True))
        tiles = (height // side) * (width // side) + 1
        image = square_image(num_tokens, self.image_token_id, side)
        image.shapes = lambda size: dict(pixel_values=(size, tiles, 3, side, side))
        image.values['image_sizes'] = [height, width]
        return image

    def _views(self, batch: dict) -> Iterator[tuple[Tensor, Tensor, _Layout]]:
        """Tiles [n, 3, h, w], thumbnail [3, h, w] and layout of each image."""
        for views, layout in zip(batch.get('pixel_values', ()), self._layouts(batch)):
            yield views[1 : 1 + math.prod(layout.grid)], views[0], layout

    def _layouts(self, batch: dict) -> list[_Layout]:
        if batch.get('pixel_values') is None:
            return []
        return [self._layout(*size) for size in batch['image_sizes'].tolist()]

    def _layout(self, height: int, width: int) -> _Layout:
        from transformers.image_processing_utils import select_best_resolution

        config = self.model.config
        tile, patch = config.vision_config.image_size, config.vision_config.patch_size
        best = select_best_resolution((height, width), config.image_grid_pinpoints)
        grid, side = (best[0] // tile, best[1] // tile), tile // patch
        class_token = config.vision_feature_select_strategy != 'default'
        rows, columns = _unpadded_tokens((height, width), (grid[0] * side, grid[1] * side))
        return _Layout(grid, _unpadded_pixels((height, width), best), side * side + class_token, rows, columns)


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
    resized = F.interpolate(part[None].float(), like.shape[-2:], mode='bicubic', antialias=True)
    return resized[0].to(like.dtype)
