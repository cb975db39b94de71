"""Views of an image at several scales (SPHINX, https://arxiv.org/abs/2311.07575), and boxes in their coordinates.

An image [height, width] is padded to a square with its own pixels in the ``'center'`` or the top left ``'corner'``.
View 0 is the whole square; views 1 to grid**2 are its grid x grid crops, row by row. Boxes are xyxy, key points xy: in
pixels of the original image, or in [0, 1] of the square or of a view.
"""

import torch
from torch import Tensor

from .resize import resize

ALIGNMENTS = ('center', 'corner')


def split_views(images: Tensor, grid: int, view_size: int) -> Tensor:
    """The whole image and its crops, all of one size.

    Crops are cut out of the image at ``grid * view_size`` pixels a side, so that together they cover it exactly.

    Args:
        images (Tensor): [B, 3, H, W], any floating dtype. Squares; others are stretched to squares.
        grid (int): Crops per side, >= 0. With 0 the whole image is the only view.
        view_size (int): Side of a view in pixels, >= 1.

    Returns:
        Tensor: [B, 1 + grid**2, 3, view_size, view_size]. Bilinear with antialias; an image that has the size
        already is copied exactly.

    Raises:
        ValueError: If the images have not four dimensions, or a number is out of its range.
    """
    _check_grid(grid)
    if images.ndim != 4:
        raise ValueError(f'images of shape {list(images.shape)}: they must be [B, 3, H, W]')
    if view_size < 1:
        raise ValueError(f'view_size={view_size} must be >= 1')
    whole = resize(images, (view_size, view_size)).unsqueeze(1)
    if grid == 0:
        return whole.clone()
    canvas = resize(images, (grid * view_size, grid * view_size))
    tiles = canvas.unflatten(3, (grid, view_size)).unflatten(2, (grid, view_size))
    return torch.cat([whole, tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)], dim=1)


def square_padding(sizes: Tensor, align: str = 'center') -> tuple[Tensor, Tensor]:
    """Where an image lies in its square. All code that pads, or maps coordinates, uses this function.

    Args:
        sizes (Tensor): [..., 2] int, height and width of the original images.
        align (str): ``'center'``, with the smaller half of an odd padding at the top or left, or ``'corner'``, with
            all padding at the bottom or right. Defaults to ``'center'``.

    Returns:
        tuple[Tensor, Tensor]: side of the square, [...], and the place (x, y) of the image's top left corner in it,
        [..., 2], all int.

    Raises:
        ValueError: If the sizes are not pairs of positive integers, or `align` is unknown.
    """
    if align not in ALIGNMENTS:
        raise ValueError(f'align={align!r} must be one of {ALIGNMENTS}')
    if sizes.ndim < 1 or sizes.size(-1) != 2 or sizes.is_floating_point() or bool((sizes < 1).any()):
        raise ValueError(f'sizes of shape {list(sizes.shape)}, {sizes.dtype}: they must be pairs (height, width) >= 1')
    side = sizes.amax(-1)
    padding = side.unsqueeze(-1) - sizes.flip(-1)
    return side, padding // 2 if align == 'center' else torch.zeros_like(padding)


def real_views(sizes: Tensor, grid: int, align: str = 'center') -> Tensor:
    """Which views show a part of the image, and not only padding.

    Args:
        sizes (Tensor): [N, 2] int, height and width of the original images.
        grid (int): Crops per side, >= 0.
        align (str): Where the padding is, see :func:`square_padding`. Defaults to ``'center'``.

    Returns:
        Tensor: [N, 1 + grid**2] bool; the first, the whole image, is always True.

    Raises:
        ValueError: If `sizes` is not [N, 2], or an argument is out of its range.
    """
    _check_grid(grid)
    if sizes.ndim != 2:
        raise ValueError(f'sizes of shape {list(sizes.shape)}: they must be [N, 2], height and width')
    side, first = square_padding(sizes, align)
    last = first + sizes.flip(-1)
    # Crop k covers [k * side / grid, (k + 1) * side / grid). Both sides are multiplied by grid: integers have no
    # rounding.
    edges = torch.arange(grid, device=sizes.device) * side[:, None, None]
    seen = (edges < last.unsqueeze(-1) * grid) & (edges + side[:, None, None] > first.unsqueeze(-1) * grid)
    columns, rows = seen.unbind(1)
    crops = (rows.unsqueeze(2) & columns.unsqueeze(1)).flatten(1)
    return torch.cat([crops.new_ones(len(crops), 1), crops], dim=1)


def boxes_to_square(boxes: Tensor, size: tuple[int, int] | Tensor, align: str = 'center') -> Tensor:
    """Map boxes from pixels of the original image to [0, 1] of the square.

    Args:
        boxes (Tensor): [..., 4] boxes xyxy or [..., 2] points xy, in pixels.
        size (tuple[int, int] | Tensor): Height and width of the image, or [..., 2] of several, which broadcasts against
            the dimensions of `boxes` before the last one.
        align (str): Where the padding is, see :func:`square_padding`. Defaults to ``'center'``.

    Returns:
        Tensor: like `boxes`, floating, in [0, 1].

    Raises:
        ValueError: If a box lies outside the image, by more than a thousandth of a pixel, or a shape is wrong.
    """
    points, size, side, offset = _geometry(boxes, size, align)
    extent = size.flip(-1).unsqueeze(-2)
    outside = ((points < -1e-3) | (points > extent + 1e-3)).flatten(-2).any(-1)
    if bool(outside.any()):
        found = points.expand(*outside.shape, -1, -1)[outside][0].flatten().tolist()
        raise ValueError(
            f'box {found} lies outside its image: x must be in [0, width], y in [0, height], in pixels. The image '
            f'sizes (height, width) are {size.reshape(-1, 2)[:4].tolist()}. Clip the boxes when they are read'
        )
    return ((points + offset) / side).clamp(0, 1).flatten(-2)


def boxes_from_square(boxes: Tensor, size: tuple[int, int] | Tensor, align: str = 'center') -> Tensor:
    """Map boxes from [0, 1] of the square to pixels of the original image, clipped to it.

    The inverse of :func:`boxes_to_square`, with the same arguments and errors; boxes may lie anywhere.
    """
    points, size, side, offset = _geometry(boxes, size, align)
    pixels = points * side - offset
    return pixels.clamp(min=0).minimum(size.flip(-1).unsqueeze(-2).to(pixels)).flatten(-2)


def boxes_from_view(boxes: Tensor, view: int, grid: int) -> Tensor:
    """Map boxes from [0, 1] of a view to [0, 1] of the square.

    Args:
        boxes (Tensor): [..., 4] boxes xyxy or [..., 2] points xy.
        view (int): The view they are in: 0 is the whole square, crops count from 1, row by row.
        grid (int): Crops per side, >= 0.

    Raises:
        ValueError: If there is no such view, or a shape is wrong.
    """
    _check_grid(grid)
    if not 0 <= view <= grid**2:
        raise ValueError(f'view={view} must be in [0, {grid**2}]: grid={grid} has 1 + {grid**2} views')
    points = _as_points(boxes)
    if view > 0:
        row, column = divmod(view - 1, grid)
        points = (points + points.new_tensor([column, row])) / grid
    return points.flatten(-2)


def _geometry(boxes: Tensor, size: tuple[int, int] | Tensor, align: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points [..., n, 2]; size [..., 2]; side [..., 1, 1] and offset [..., 1, 2] of the square, to broadcast."""
    points = _as_points(boxes)
    size = torch.as_tensor(size, device=points.device)
    side, offset = square_padding(size, align)
    return points, size, side[..., None, None], offset.unsqueeze(-2)


def _as_points(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] -> [..., 2, 2], points [..., 2] -> [..., 1, 2], floating."""
    boxes = torch.as_tensor(boxes)
    if boxes.ndim < 1 or boxes.size(-1) not in (2, 4):
        raise ValueError(f'boxes of shape {list(boxes.shape)}: they must be [..., 4] (xyxy) or [..., 2] (key points)')
    return (boxes if boxes.is_floating_point() else boxes.float()).unflatten(-1, (-1, 2))


def _check_grid(grid: int) -> None:
    if not isinstance(grid, int) or isinstance(grid, bool) or grid < 0:
        raise ValueError(f'grid={grid!r} must be an integer >= 0: the number of crops per side')
