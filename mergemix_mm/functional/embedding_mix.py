"""Embedding mix of SPHINX (https://arxiv.org/abs/2311.07575): the token maps of several encoders on one grid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .resize import resize, sample_cells


def resample_grid(token_map: Tensor, grid: int | tuple[int, int], cell: tuple[float, float] | None = None) -> Tensor:
    """Resample a map of tokens bilinearly; a coarser grid averages over the tokens in between (antialias).

    Args:
        token_map (Tensor): [B, C, h, w], any floating dtype; interpolated in float32.
        grid (int | tuple[int, int]): Rows and columns of the result; a number stands for both.
        cell (tuple[float, float], optional): Height and width of a cell of the grid, in tokens; the grid begins where
            the map begins, and may end elsewhere. Defaults to None: the grid covers the map exactly.

    Returns:
        Tensor: [B, C, rows, columns]; the map itself where it has this grid already.

    Raises:
        ValueError: If the map does not have four dimensions, or the grid is not of positive integers.
    """
    if token_map.ndim != 4:
        raise ValueError(f'token map of shape {list(token_map.shape)}: it must be [B, C, rows, columns]')
    return resize(token_map, as_grid(grid)) if cell is None else sample_cells(token_map, as_grid(grid), cell)


def mix_embeddings(
    token_maps: Sequence[Tensor],
    grid: int | tuple[int, int],
    cells: Sequence[tuple[float, float] | None] | None = None,
) -> Tensor:
    """Concatenate the maps of several encoders over the channels, on one grid.

    Args:
        token_maps (Sequence[Tensor]): One map [B, C_i, h_i, w_i] per encoder.
        grid (int | tuple[int, int]): Rows and columns of the result; a number stands for both.
        cells (Sequence, optional): The ``cell`` of each map, see :func:`resample_grid`. Defaults to None: the grid
            covers all maps exactly.

    Returns:
        Tensor: [B, rows * columns, sum of C_i], row by row; the channels in the order of the maps.

    Raises:
        ValueError: If there is no map, the maps are not of the same images, or :func:`resample_grid` refuses one.
    """
    if not token_maps:
        raise ValueError('token_maps is empty: there is nothing to mix')
    if len({len(token_map) for token_map in token_maps}) > 1:
        raise ValueError(f'token_maps are of {[len(token_map) for token_map in token_maps]} images: not the same batch')
    cells = [None] * len(token_maps) if cells is None else cells
    maps = [resample_grid(token_map, grid, cell) for token_map, cell in zip(token_maps, cells, strict=True)]
    return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)


def as_grid(grid: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a grid; a number stands for both.

    Raises:
        ValueError: If they are not positive integers.
    """
    pair = tuple(grid) if isinstance(grid, list | tuple) else (grid, grid)
    if len(pair) != 2 or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in pair):
        raise ValueError(f'grid={grid!r} must be an integer >= 1, or (rows, columns)')
    return pair
