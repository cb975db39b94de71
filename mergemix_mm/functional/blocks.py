"""Square blocks of patches: the most salient one of an image, put where another image is least salient.

SMMix (https://arxiv.org/abs/2212.12977) and TdAttenMix (https://arxiv.org/abs/2501.15409) mix in this way. Shapes: B
batch, L' = rows * columns patches. A corner is the row and the column of the first patch of a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_side(grid: tuple[int, int], low: float, high: float, generator: torch.Generator | None = None) -> int:
    """Draw the side of a block in patches, evenly between two shares of the shorter side of the grid.

    Args:
        grid (tuple[int, int]): Rows and columns of patches.
        low (float): Smallest share, in (0, 1]; the side is rounded down, but at least 1.
        high (float): Largest share, in [low, 1]; rounded down as well, and drawn as often as the others.
        generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.

    Returns:
        int: in [1, min(grid)].

    Raises:
        ValueError: if the shares are out of their range.
    """
    if not 0 < low <= high <= 1:
        raise ValueError(f'low={low} and high={high} must be 0 < low <= high <= 1')
    first, last = (max(int(min(grid) * share), 1) for share in (low, high))
    device = generator.device if generator is not None else None
    return int(torch.randint(first, last + 1, (), generator=generator, device=device))


def extreme_blocks(saliency: Tensor, grid: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
    """The blocks of the lowest and of the highest summed saliency.

    Args:
        saliency (Tensor): [B, L'], any floating dtype. Among equals the first block wins, row by row.
        grid (tuple[int, int]): Rows and columns of patches.
        side (int): Rows and columns of a block, in [1, min(grid)].

    Returns:
        tuple: corners of the least and of the most salient blocks, each [B, 2] int64.
    """
    # The mean over a block ranks as its sum does.
    means = F.avg_pool2d(saliency.float().unflatten(1, grid).unsqueeze(1), side, stride=1)
    positions, columns = means.flatten(1), means.size(-1)

    def corner(index: Tensor) -> Tensor:
        return torch.stack([index.div(columns, rounding_mode='floor'), index % columns], dim=1)

    return corner(positions.argmin(dim=1)), corner(positions.argmax(dim=1))


def block_mask(corner: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """Masks of blocks: corners [B, 2], one side -> [B, L'] bool, row by row, True inside the block."""
    inside = []
    for size, first in zip(grid, corner.unbind(dim=1), strict=True):
        place = torch.arange(size, device=corner.device) - first.unsqueeze(1)
        inside.append((place >= 0) & (place < side))
    rows, columns = inside
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).flatten(1)


def shift_patches(images: Tensor, shift: Tensor, grid: tuple[int, int]) -> Tensor:
    """Move the content of each image by whole patches; what leaves on one side comes in on the other.

    Args:
        images (Tensor): [B, C, H, W] with H and W multiples of the grid, or maps [B, L'] over the grid.
        shift (Tensor): [B, 2] int64, rows down and columns to the right.
        grid (tuple[int, int]): Rows and columns of patches.

    Returns:
        Tensor: shaped as `images`, new memory.
    """
    if images.ndim == 2:
        return shift_patches(images.unflatten(1, (1, *grid)), shift, grid).flatten(1)
    moved = images
    for dim, size, by in zip((2, 3), grid, shift.unbind(dim=1), strict=True):
        pixels = images.size(dim)
        place = torch.arange(pixels, device=images.device) - by.to(images.device).unsqueeze(1) * (pixels // size)
        shape = [len(images), 1, 1, 1]
        shape[dim] = pixels
        moved = moved.gather(dim, (place % pixels).view(shape).expand_as(moved))
    return moved
