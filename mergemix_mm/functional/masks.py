"""Masks of image mixing that need no network: boxes.

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


def _to(drawn: Tensor, device: torch.device | str | None) -> Tensor:
    # A GPU does not wait for the host here: the few numbers are copied before the call returns.
    return drawn if device is None else drawn.to(device, non_blocking=True)
