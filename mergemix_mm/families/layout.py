"""Where images lie in a text and tiles in an image; shared by the families with frames around images and with tiles."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import IMAGE, MARKER, TEXT, Family


def runs(mask: Tensor) -> Tensor:
    """The unbroken stretches of True in a mask [B, L] -> [R, 3] int64: row, first column, length; row by row."""
    # Zeros around a row give a stretch at its border two edges as well.
    edges = F.pad(mask.long(), (1, 1)).diff(dim=1)
    starts, ends = (edges == 1).nonzero(), (edges == -1).nonzero()
    return torch.cat([starts, ends[:, 1:] - starts[:, 1:]], dim=1)


def mark_frames(modality: Tensor) -> Tensor:
    """Text next to image tokens becomes ``MARKER``: for families with one start and one end token around an image."""
    image = modality == IMAGE
    beside = F.pad(image[:, 1:], (0, 1)) | F.pad(image[:, :-1], (1, 0))
    return modality.masked_fill(beside & (modality == TEXT), MARKER)


class PaddedFamily(Family):
    """A family whose ``pixel_values`` [N, 3, H, W] have zeros below and on the right of images of several sizes.

    H and W are the largest height and width of the batch, and ``image_sizes`` [N, 2] are those of each image. A canvas
    is the image without the zeros.
    """

    def canvases(self, batch: dict) -> list[Tensor]:
        pixels = self.pixels(batch)
        if pixels is None:
            return []
        sizes = batch['image_sizes'].tolist()
        return [image[:, :height, :width] for image, (height, width) in zip(pixels, sizes, strict=True)]

    def with_canvases(self, batch: dict, canvases: list[Tensor]) -> dict:
        self.check_canvases(canvases, batch)
        if not canvases:
            return dict(batch)
        height, width = batch['pixel_values'].shape[-2:]
        padded = [F.pad(image, (0, width - image.size(2), 0, height - image.size(1))) for image in canvases]
        return {**batch, 'pixel_values': torch.stack(padded)}


def join_tiles(tiles: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tiles [rows * columns, 3, h, w], row by row -> the canvas [3, rows * h, columns * w]."""
    return tiles.unflatten(0, grid).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


def split_canvas(canvas: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`join_tiles`."""
    rows, columns = grid
    tiles = canvas.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    return tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)


def views_to_canvas(views: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the model reads of one image, [n, 3, h, w], -> its canvas; an image of one tile has no thumbnail."""
    return views[0] if grid == (1, 1) else join_tiles(views[:-1], grid)


def canvas_to_views(canvas: Tensor, views: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tiles and thumbnail of a canvas; `views` are those it had. An unchanged canvas gives them back exactly.

    The processors make the thumbnail of the original file, which a changed canvas does not have: here it is the canvas,
    resized bicubically with antialiasing.
    """
    if grid == (1, 1):
        return canvas[None]
    tiles = split_canvas(canvas, grid)
    # Images that were not mixed keep the thumbnail of the processor exactly.
    if torch.equal(tiles, views[:-1]):
        return views
    # In float32: bfloat16 would round the intermediate values of the filter.
    thumbnail = F.interpolate(canvas[None].float(), views.shape[-2:], mode='bicubic', antialias=True)
    return torch.cat([tiles, thumbnail.to(canvas.dtype)])
