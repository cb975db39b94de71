"""The neck that mixes the embeddings of several encoders (SPHINX, https://arxiv.org/abs/2311.07575)."""

import math
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...functional import as_grid, mix_embeddings
from ...utils.numbers import check_number, is_number
from ...utils.text import quoted
from ..backbones import TokenMap
from ..backbones.token_map import find_cell

FUSIONS = ('concat', 'mlp')
OUTPUTS = ('tokens', 'featmap')


@MODELS.register_module()
class EmbeddingMixNeck(BaseModule):
    """Maps of tokens -> one grid -> channels concatenated -> projection -> norm; sequences are put before the result.

    The input is the output of :class:`MultiBackbone`, or the maps of any other backbone, such as several stages of a
    CNN, which are resampled to one grid.

    Args:
        in_channels (Sequence[int]): Channels of the maps, in order.
        out_channels (int): Channels of the output, e.g. the width of the language model.
        sequence_channels (Sequence[int]): Channels of the sequences (Q-Former), in order; each has its own projection.
            Only for ``output='tokens'``. Defaults to ().
        grid (int | tuple[int, int], optional): Rows and columns that all maps are resampled to, each map as a whole.
            Defaults to None: those of the finest map; the others are sampled at its cells, by position in pixels.
        class_token (bool): Whether a class token, mixed and projected like the patches, precedes them: the encoder's
            own, or the mean of its map if it has none. Only for ``output='tokens'``. Defaults to False.
        fuse (str): The projection: ``'concat'``, one linear layer; ``'mlp'``, three with GELU in between, the first
            four times as wide as its input (Prismatic, https://arxiv.org/abs/2402.07865). Defaults to ``'concat'``.
        norm (bool): Whether a LayerNorm follows each projection. Defaults to True.
        output (str): ``'tokens'`` for language models, ``'featmap'`` for heads of OpenMMLab. Defaults to ``'tokens'``.
        scales (Sequence[float]): Levels of ``'featmap'``, relative to `grid`: 2.0 is twice as fine. A level of scale k
            on cells of s pixels has the stride s / k, as a detector's anchors do: cell (i, j) is centred at
            ((i + 0.5) * s / k, (j + 0.5) * s / k). A level has ceil(k * rows) by ceil(k * columns) cells; the last ones
            may reach over the border. All levels share the projection. Defaults to (1,).
        init_cfg (dict, optional): Initialization config. Defaults to None.

    Raises:
        ValueError: If an argument is out of its range, or two contradict each other.

    Examples:
        >>> neck = dict(type='EmbeddingMixNeck', in_channels=[1024, 3072, 1536], sequence_channels=[768],
        ...             out_channels=4096, grid=16, class_token=True)  # SPHINX: 32 + 1 + 256 tokens.
        >>> neck = dict(type='EmbeddingMixNeck', in_channels=[1024, 1536], out_channels=256, output='featmap',
        ...             scales=(4, 2, 1, 0.5))  # A feature pyramid for a detector.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        sequence_channels: Sequence[int] = (),
        grid: int | tuple[int, int] | None = None,
        class_token: bool = False,
        fuse: str = 'concat',
        norm: bool = True,
        output: str = 'tokens',
        scales: Sequence[float] = (1,),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not in_channels:
            raise ValueError('EmbeddingMixNeck: in_channels is empty; it needs the channels of at least one map')
        widths = dict(in_channels=in_channels, sequence_channels=sequence_channels, out_channels=[out_channels])
        for name, values in widths.items():
            if not isinstance(values, Sequence):
                raise ValueError(f'EmbeddingMixNeck: {name}={quoted(values)} must be a list, one entry per input')
            for value in values:
                check_number(f'EmbeddingMixNeck: {name}', value, 'an integer of at least 1', least=1, integer=True)
        if fuse not in FUSIONS:
            raise ValueError(f'EmbeddingMixNeck: fuse={fuse!r} must be one of {FUSIONS}')
        if grid is not None:
            as_grid(grid)
        _check_output(output, scales, class_token, sequence_channels)
        self.in_channels = tuple(in_channels)
        self.sequence_channels = tuple(sequence_channels)
        self.out_channels = out_channels
        self.grid = grid
        self.class_token = class_token
        self.output = output
        self.scales = tuple(scales)
        self.projection = _projection(sum(in_channels), out_channels, fuse, norm)
        self.sequence_projections = nn.ModuleList(
            _projection(channels, out_channels, 'concat', norm) for channels in sequence_channels
        )

    def forward(self, inputs: Sequence[TokenMap | Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Mix the embeddings of a batch.

        Args:
            inputs (Sequence[TokenMap | Tensor]): Maps, as :class:`TokenMap` or [B, C, h, w], and sequences [B, n, C],
                in any order.

        Returns:
            Tensor | tuple[Tensor, ...]: With ``output='tokens'`` [B, N, out_channels]: the tokens of the sequences, the
            class token, the patches row by row. With ``'featmap'`` one map [B, out_channels, h, w] per scale.

        Raises:
            ValueError: If number or channels of the inputs are not those of the configuration.
        """
        maps, sequences = self._sort(inputs)
        grid = _finest(maps) if self.grid is None else as_grid(self.grid)
        cells = self._cells(maps, grid)
        if self.output == 'featmap':
            return tuple(self._featmap(maps, grid, cells, scale) for scale in self.scales)
        mixed = mix_embeddings([m.features for m in maps], grid, cells)
        if self.class_token:
            mixed = torch.cat([torch.cat([_class_token(m) for m in maps], dim=1).unsqueeze(1), mixed], dim=1)
        # Sequences first, then the class token, then the patches: SPHINX' order.
        projected = [project(x) for project, x in zip(self.sequence_projections, sequences, strict=True)]
        return torch.cat([*projected, self.projection(mixed)], dim=1)

    def _featmap(
        self, maps: list[TokenMap], grid: tuple[int, int], cells: list[tuple[float, float]], scale: float
    ) -> Tensor:
        # Rounded before ceil: 50 * 1.1 is 55.00000000000001 in floating point, which would give 56 cells.
        rows, columns = (max(1, math.ceil(round(size * scale, 4))) for size in grid)
        cells = [(height / scale, width / scale) for height, width in cells]
        mixed = self.projection(mix_embeddings([m.features for m in maps], (rows, columns), cells))
        return mixed.transpose(1, 2).unflatten(2, (rows, columns))

    def _cells(self, maps: list[TokenMap], grid: tuple[int, int]) -> list[tuple[float, float]]:
        """Height and width of a cell of the grid, in cells of each map."""
        sizes = [tuple(m.features.shape[-2:]) for m in maps]
        if self.grid is not None:  # A fixed grid is stretched over each map as a whole.
            return [(rows / grid[0], columns / grid[1]) for rows, columns in sizes]
        known = [m.cell for m in maps if m.cell is not None]
        if len(known) < len(maps):  # Stages of a backbone know no pixels: the cells of the finest stage are the unit.
            known = [find_cell(grid, size) for size in sizes]
        height, width = known[sizes.index(grid)]
        return [(height / rows, width / columns) for rows, columns in known]

    def _sort(self, inputs: Sequence[TokenMap | Tensor]) -> tuple[list[TokenMap], list[Tensor]]:
        """Maps and sequences, each in order."""
        maps, sequences = [], []
        for x in inputs:
            if isinstance(x, TokenMap):
                maps.append(x)
            elif isinstance(x, Tensor) and x.ndim in (3, 4):
                maps.append(TokenMap(x)) if x.ndim == 4 else sequences.append(x)
            else:
                found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f'EmbeddingMixNeck: takes maps [B, C, h, w] and sequences [B, n, C], got {found}')
        _check_channels('in_channels', self.in_channels, [m.features.size(1) for m in maps])
        _check_channels('sequence_channels', self.sequence_channels, [x.size(2) for x in sequences])
        return maps, sequences


def _projection(in_channels: int, out_channels: int, fuse: str, norm: bool) -> nn.Sequential:
    hidden = 4 * in_channels
    layers = (
        [nn.Linear(in_channels, out_channels)]
        if fuse == 'concat'
        else [
            nn.Linear(in_channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, out_channels),
            nn.GELU(),
            nn.Linear(out_channels, out_channels),
        ]
    )
    return nn.Sequential(*layers, *([nn.LayerNorm(out_channels)] if norm else []))


def _finest(maps: Sequence[TokenMap]) -> tuple[int, int]:
    rows, columns = max((tuple(m.features.shape[-2:]) for m in maps), key=math.prod)
    return rows, columns


def _class_token(token_map: TokenMap) -> Tensor:
    features, class_token = token_map
    return features.mean(dim=(2, 3)) if class_token is None else class_token


def _check_channels(key: str, expected: Sequence[int], found: Sequence[int]) -> None:
    if tuple(expected) != tuple(found):
        raise ValueError(
            f'EmbeddingMixNeck: {key}={list(expected)}, but the backbone gives channels {list(found)}. Set {key} to '
            'them, or change the encoders (out_indices) of the backbone'
        )


def _check_output(output: str, scales: Sequence[float], class_token: bool, sequence_channels: Sequence[int]) -> None:
    if output not in OUTPUTS:
        raise ValueError(f'EmbeddingMixNeck: output={output!r} must be one of {OUTPUTS}')
    if not scales or not all(is_number(scale, above=0) for scale in scales):
        raise ValueError(f'EmbeddingMixNeck: scales={scales} must be numbers above 0, one per level')
    if output == 'tokens' and tuple(scales) != (1,):
        raise ValueError(f"EmbeddingMixNeck: scales={scales} are levels of output='featmap'; tokens have grid alone")
    if output == 'featmap' and class_token:
        raise ValueError("EmbeddingMixNeck: class_token=True has no place in a map; set output='tokens'")
    if output == 'featmap' and sequence_channels:
        raise ValueError(
            f'EmbeddingMixNeck: sequence_channels={list(sequence_channels)} has no place in a map. Set '
            "output='tokens', or leave the encoder that gives a sequence (Q-Former) out of the backbone"
        )
