"""Resizing of images and maps, the same everywhere in the package: bilinear, with antialias.

Two places differ on purpose. Thumbnails of tiled images are bicubic, as the families' processors make them
(families/layout.py, families/llava_next.py). Masks take the nearest patch (models/tuners/mix_canvases.py).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize images or maps.

    Args:
        x (Tensor): [B, C, h, w], any floating dtype. Interpolated in float32, since not every device supports antialias
            in half precision.
        size (Sequence[int]): Rows and columns of the result.

    Returns:
        Tensor: ``[B, C, *size]`` in the dtype of `x`; `x` itself, not a copy, if it has the size.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled() and x.requires_grad:
        # On CUDA, the gradient of the interpolation is not deterministic, and torch refuses it. Matrix products are.
        return _interpolate(x, size, (x.size(2) / size[0], x.size(3) / size[1]))
    return F.interpolate(x.float(), size=size, mode='bilinear', antialias=True).to(x.dtype)


def sample_cells(x: Tensor, size: tuple[int, int], cell: tuple[float, float]) -> Tensor:
    """Maps ``[B, C, h, w]`` -> ``[B, C, *size]`` in cells of a given size, which need not end where the map ends.

    Cell (i, j) has its centre at ((i + 0.5) * cell[0], (j + 0.5) * cell[1]), measured in cells of `x` from its corner.
    (:func:`resize` instead stretches the cells until they cover `x` exactly.) The weights are those of :func:`resize`.
    Places outside `x` have no weight; a cell that lies outside as a whole takes the border of `x`.

    Args:
        x (Tensor): [B, C, h, w], any floating dtype; interpolated in float32.
        size (tuple[int, int]): Rows and columns of the result.
        cell (tuple[float, float]): Height and width of its cells, in cells of `x`.

    Returns:
        Tensor: [B, C, *size] in the dtype of `x`.
    """
    # Cells that cover the map exactly, up to rounding, need no matrices.
    if all(abs(number * length - known) < 1e-4 for number, length, known in zip(size, cell, x.shape[-2:], strict=True)):
        return resize(x, size)
    return _interpolate(x, size, cell)


def _interpolate(x: Tensor, size: Sequence[int], cell: tuple[float, float]) -> Tensor:
    """Interpolation as two products of matrices: it is separable in rows and columns."""
    down, across = (
        _interpolation_weights(known, number, length, x.device)
        for known, number, length in zip(x.shape[-2:], size, cell, strict=True)
    )
    with torch.autocast(x.device.type, enabled=False):  # It would multiply in half precision.
        return (down @ x.float() @ across.T).to(x.dtype)


def _interpolation_weights(length: int, size: int, cell: float, device: torch.device) -> Tensor:
    """Weights [size, length] of the places in each cell, rows sum to 1.

    A triangle around the centre of the cell, which reaches as far as a cell is wide (antialias), and at least as far as
    a place is wide (plain interpolation).
    """
    centre = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * cell
    reach = max(cell, 1.0)
    centre = centre.clamp(max=length - 0.5 + (reach - 1))  # So far that the last place is within reach.
    place = torch.arange(length, device=device, dtype=torch.float32) + 0.5
    weights = (1 - (place[None, :] - centre[:, None]).abs() / reach).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)
