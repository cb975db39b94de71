"""From images to the tokens of their views (SPHINX, https://arxiv.org/abs/2311.07575, "mixing of scales").

Shapes: N images, V views of each (the whole image, then g x g crops row by row), R views that are encoded, T tokens of
a view, C channels.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ....functional import split_views
from ....utils.numbers import is_number

GRIDS = (1, 2, 3)


class ViewEncoder(BaseModule):
    """Several vision backbones see the whole image and its crops; a neck mixes what they see.

    Every backbone has its own view size, and is called once for all views of a batch. Views that are padding only are
    not encoded.

    Args:
        backbone (nn.Module): A `MultiBackbone`.
        neck (nn.Module): An `EmbeddingMixNeck` with ``output='tokens'`` and a fixed ``grid``.
        grid (int): Crops per side: 1 (the whole image alone), 2 or 3. Defaults to 1.
        crop_pool (int, optional): The patches of a crop are averaged over squares of so many a side; sequences and
            class token stay. Defaults to None: they are not.

    Raises:
        ValueError: if an argument cannot be used.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, grid: int = 1, crop_pool: int | None = None) -> None:
        super().__init__()
        if not is_number(grid, integer=True) or grid not in GRIDS:
            raise ValueError(f'SphinxModel: grid={grid!r} must be one of {GRIDS}: 1 is the whole image alone')
        if neck.output != 'tokens' or not isinstance(neck.grid, int):
            raise ValueError(
                f"SphinxModel: neck.output={neck.output!r} and neck.grid={neck.grid!r} must be 'tokens' and a number, "
                'as a language model reads equally many tokens of every view'
            )
        usable = crop_pool is None or (is_number(crop_pool, least=1, integer=True) and grid > 1)
        if not usable or (crop_pool is not None and neck.grid % crop_pool):
            raise ValueError(
                f'SphinxModel: crop_pool={crop_pool!r} needs crops (grid={grid}; 2 or 3) and must divide '
                f'neck.grid={neck.grid}'
            )
        self.backbone, self.neck, self.crop_pool = backbone, neck, crop_pool
        # Crops per side; one crop would be the whole image again.
        self.crop_grid = grid if grid > 1 else 0

    @property
    def num_views(self) -> int:
        """V, the whole image and its crops."""
        return 1 + self.crop_grid**2

    def forward(self, images: Tensor, real: Tensor | None = None) -> Tensor:
        """Encode images.

        Args:
            images (Tensor): [N, 3, S, S], squares, normalised as the backbone's common input.
            real (Tensor, optional): [N, V] bool, the views to encode; the first of each image is. Defaults to None:
                all.

        Returns:
            Tensor: [tokens, C], of all encoded views, image by image, view by view.
        """
        if real is None:
            real = torch.ones(len(images), self.num_views, dtype=torch.bool, device=images.device)
        tokens = self.neck(tuple(self._encode(branch, images, real) for branch in self.backbone.branches))
        whole = torch.zeros_like(real)
        whole[:, 0] = True
        return tokens.flatten(0, 1) if self.crop_pool is None else self._pool_crops(tokens, whole[real])

    def _encode(self, branch: nn.Module, images: Tensor, real: Tensor) -> Tensor | tuple:
        """What one backbone makes of the views, at its own size."""
        size = branch.input_size or images.size(-1) // max(self.crop_grid, 1)
        return branch(split_views(images, self.crop_grid, size)[real])

    def _pool_crops(self, tokens: Tensor, whole: Tensor) -> Tensor:
        """[R, T, C], of which `whole` [R] are whole images, -> [tokens, C] with fewer tokens of the crops."""
        num_patches = self.neck.grid**2
        prefix, patches = tokens[~whole].split([tokens.size(1) - num_patches, num_patches], dim=1)
        maps = patches.transpose(1, 2).unflatten(2, (self.neck.grid, self.neck.grid))
        crops = torch.cat([prefix, F.avg_pool2d(maps, self.crop_pool).flatten(2).transpose(1, 2)], dim=1)
        views, next_crop = [], iter(crops)
        for view, is_whole in zip(tokens, whole.tolist(), strict=True):
            views.append(view if is_whole else next(next_crop))
        return torch.cat(views)
