"""Masks of image mixing that need no network: boxes and cells.

Shapes: B batch, H x W pixels. A mask is True where an image keeps its own pixel and False where it takes the
partner's. A share is that of the image itself, in [0, 1].
"""

import torch
from torch import Tensor


def random_centers(
    count: int,
    size: tuple[int, int],
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw pixels uniformly: the centres of boxes.

    Args:
        count (int): How many to draw.
        size (tuple[int, int]): H and W.
        generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.
        device (optional): Device of the result. Defaults to the generator's.

    Returns:
        Tensor: [count, 2] int64, row in [0, H) and column in [0, W).
    """
    drawn_on = generator.device if generator is not None else None
    drawn = [torch.randint(side, (count,), generator=generator, device=drawn_on) for side in size]
    return _to(torch.stack(drawn, dim=1), device)


def box_mask(share: Tensor, center: Tensor, size: tuple[int, int]) -> Tensor:
    """A box of area 1 - lambda is the partner's, clipped at the border (CutMix, https://arxiv.org/abs/1905.04899).

    The sides of the box (eq. 2 of the paper) are floor(H * sqrt(1 - lambda)) and floor(W * sqrt(1 - lambda)).

    Args:
        share (Tensor): [B] lambda in [0, 1].
        center (Tensor): [B, 2] row and column of the box' centre. The mask is on its device.
        size (tuple[int, int]): H and W.

    Returns:
        Tensor: [B, H, W] bool, False in the box.
    """
    inside = []
    for axis, side in enumerate(size):
        length = _to((side * (1 - share).sqrt()).floor().long(), center.device)
        first = center[:, axis] - length // 2
        places = torch.arange(side, device=center.device)
        inside.append((places >= first[:, None]) & (places < (first + length)[:, None]))
    rows, columns = inside
    return ~(rows[:, :, None] & columns[:, None, :])


def cell_mask(
    share: Tensor,
    grid: tuple[int, int],
    cell: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Random square cells: ceil(lambda * cells) of them are the image's own (MixPro, https://arxiv.org/abs/2304.12043).

    Args:
        share (Tensor): [B] lambda in [0, 1], on the CPU; each image has cells of its own.
        grid (tuple[int, int]): Rows and columns of the mask.
        cell (int): Side of a cell on the grid, >= 1; cells at the right and the lower border may be cut.
        generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.
        device (optional): Device of the result. Defaults to the generator's.

    Returns:
        Tensor: [B, rows, columns] bool.
    """
    cells = [-(-side // cell) for side in grid]
    total = cells[0] * cells[1]
    drawn_on = generator.device if generator is not None else None
    order = torch.rand(len(share), total, generator=generator, device=drawn_on).argsort(dim=1)
    own = _to(order < (share * total).ceil().long().to(order.device).unsqueeze(1), device).unflatten(1, cells)
    return own.repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2)[:, : grid[0], : grid[1]]


def _to(drawn: Tensor, device: torch.device | str | None) -> Tensor:
    # A GPU does not wait for the host here: the few numbers are copied before the call returns.
    return drawn if device is None else drawn.to(device, non_blocking=True)
