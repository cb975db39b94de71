"""Masks of image mixing that need no network: boxes, soft spots, grids, blocks and noise.

Shapes: B batch, H x W pixels. A mask is True where an image keeps its own pixel and False where it takes the
partner's; a soft mask is the own share of each pixel. A share is that of the image itself, in [0, 1].
"""

import math

import torch
from torch import Tensor

from .mixing import random_source, topk_mask


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


def spot_mask(center: Tensor, sigma: Tensor, size: tuple[int, int]) -> Tensor:
    """A soft round spot is the partner's: 1 - exp(-d^2 / (2 sigma^2)) at distance d (SmoothMix, CVPR workshops 2020).

    Args:
        center (Tensor): [B, 2] row and column of the spot's centre. The mask is on its device.
        sigma (Tensor): [B] its width in pixels, > 0.
        size (tuple[int, int]): H and W.

    Returns:
        Tensor: [B, H, W] float32 in [0, 1], 0 in the centre.
    """
    sigma = _to(sigma.float(), center.device)[:, None]
    fall = []
    for axis, side in enumerate(size):
        distance = torch.arange(side, device=center.device) - center[:, axis, None]
        fall.append((-0.5 * (distance / sigma).square()).exp())
    rows, columns = fall
    return 1 - rows[:, :, None] * columns[:, None, :]


def grid_mask(
    share: Tensor, num_cells: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Each cell of a grid is the image's own with probability lambda (GridMix, Pattern Recognition 109, 2021).

    Args:
        share (Tensor): [B] lambda in [0, 1].
        num_cells (int): Cells along each side.
        generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.
        device (optional): Device of the result. Defaults to the generator's.

    Returns:
        Tensor: [B, num_cells, num_cells] bool; :func:`cells_to_pixels` enlarges it.
    """
    drawn_on = generator.device if generator is not None else None
    drawn = torch.rand(len(share), num_cells, num_cells, generator=generator, device=drawn_on)
    return _to(drawn < share[:, None, None].to(drawn), device)


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


def cells_to_pixels(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells [B, rows, columns] -> [B, H, W]; cells differ by a pixel where H and W are not their multiples."""
    rows, columns = (
        torch.arange(side, device=cells.device) * number // side for side, number in zip(size, cells.shape[1:])
    )
    return cells[:, rows[:, None], columns]


def hole_mask(
    share: Tensor,
    num_holes: Tensor,
    corner: Tensor,
    region: Tensor,
    size: tuple[int, int],
    device: torch.device | str | None = None,
) -> Tensor:
    """Square holes at regular distances show the partner, each of area 1 - lambda of its cell, inside a region.

    A port that is often taken for GridMix mixes so (IlyaDobrynin/GridMixup, ``implementation/gridmix_pytorch.py``).

    Args:
        share (Tensor): [B] lambda in [0, 1].
        num_holes (Tensor): [B] int64, holes along the width of the region, >= 1.
        corner (Tensor): [B, 2] int64, first row and column of the region.
        region (Tensor): [B, 2] int64, its height and width.
        size (tuple[int, int]): H and W.
        device (optional): Device of the result. Defaults to that of `corner`.

    Returns:
        Tensor: [B, H, W] bool, False in the holes, which are at least one pixel and leave one pixel between them.
    """
    # A cell of one pixel could not hold both images.
    cell = (-(-region[:, 1] // num_holes)).clamp(min=2)
    hole = (cell * (1 - share).sqrt()).floor().long().clamp(min=1).minimum(cell - 1)
    inside = []
    for axis, side in enumerate(size):
        place = torch.arange(side, device=corner.device) - corner[:, axis, None]
        in_region = (place >= 0) & (place < region[:, axis, None])
        inside.append(_to(in_region & (place % cell[:, None] < hole[:, None]), device))
    rows, columns = inside
    return ~(rows[:, :, None] & columns[:, None, :])


def random_blocks(grid: tuple[int, int], count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw random, possibly overlapping rectangles until they cover `count` patches (TokenMix, block-wise mask).

    The area of each block is uniform in [1, what is missing], its aspect ratio log-uniform in [0.3, 1 / 0.3]. A block
    that would cover too many patches is drawn again, up to ten times; then the mask stays smaller than `count`.

    Args:
        grid (tuple[int, int]): Rows and columns of the patches.
        count (int): Patches to cover, in [0, rows * columns].
        generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.

    Returns:
        Tensor: [L'] bool on the CPU, True in a block.
    """
    rows, columns = grid
    source = random_source(generator)
    covered = torch.zeros(rows, columns, dtype=torch.bool)
    missing = count
    while missing > 0:
        for _ in range(10):
            area, aspect = source.uniform(1, missing), math.exp(source.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < height < rows and 0 < width < columns):
                continue
            top, left = source.randint(0, rows - height), source.randint(0, columns - width)
            block = covered[top : top + height, left : left + width]
            new = block.numel() - int(block.sum())
            if 0 < new <= missing:
                block.fill_(True)
                missing -= new
                break
        else:
            break
    return covered.flatten()


def fourier_mask(
    share: Tensor,
    size: tuple[int, int],
    decay: float = 3.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Threshold smooth noise so that a share lambda of the pixels is own (FMix, https://arxiv.org/abs/2002.12047).

    The noise has normal real and imaginary parts of amplitude 1 / max(f, 1 / max(H, W))^decay at the frequency f, in
    cycles per pixel (eq. 1 of the paper). It is calculated in float32.

    Args:
        share (Tensor): [B] lambda in [0, 1].
        size (tuple[int, int]): H and W.
        decay (float): How much smoother than white noise, >= 0. Defaults to 3.0, the paper's.
        generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.
        device (optional): Device of the result. Defaults to the generator's.

    Returns:
        Tensor: [B, H, W] bool with exactly floor(lambda * H * W) True in each mask.
    """
    drawn_on = generator.device if generator is not None else device
    height, width = size
    spectrum = torch.randn(len(share), height, width // 2 + 1, 2, generator=generator, device=drawn_on)
    down = torch.fft.fftfreq(height, device=drawn_on)[:, None]
    across = torch.fft.rfftfreq(width, device=drawn_on)
    frequency = (down.square() + across.square()).sqrt().clamp(min=1 / max(size))
    noise = torch.fft.irfft2(torch.view_as_complex(spectrum) / frequency**decay, s=size)
    return topk_mask(_to(noise, device).flatten(1), share).unflatten(1, size)


def _to(drawn: Tensor, device: torch.device | str | None) -> Tensor:
    """A few drawn numbers on another device; a CUDA device does not wait for the host."""
    # The host's memory is copied before the call returns. This is not so on all other devices.
    cuda = device is not None and torch.device(device).type == 'cuda'
    return drawn if device is None else drawn.to(device, non_blocking=cuda)
