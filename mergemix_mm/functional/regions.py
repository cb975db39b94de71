"""What a mask shows: random blocks of tokens and the visible part of a map (TokenMix), mean tokens (SMMix).

Sources: SMMix (https://arxiv.org/abs/2212.12977), TokenMix (https://arxiv.org/abs/2207.08409). Shapes: B batch, L'
patches, row by row over a grid, C channels.
"""

import math

import torch
from torch import Tensor

from .mixing import random_source


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


def visible_scores(saliency: Tensor, partner: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each image's own saliency, and how much of the partner's, can be seen in the mix (TokenMix).

    Args:
        saliency (Tensor): [B, L'], non-negative. Each row is divided by its sum; a row of zeros counts as uniform.
        partner (Tensor): [B] int64.
        mask (Tensor): [B, L'] bool, or the own share of each patch in [0, 1].

    Returns:
        tuple[Tensor, Tensor]: [B] float32 each, in [0, 1]. They need not sum to one.
    """
    saliency = saliency.float()
    total = saliency.sum(dim=1, keepdim=True)
    saliency = torch.where(total > 0, saliency / torch.where(total > 0, total, 1), 1 / saliency.size(1))
    share = mask.to(saliency)
    return (saliency * share).sum(dim=1), (saliency[partner] * (1 - share)).sum(dim=1)


def region_means(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the patch tokens [B, L', C] where mask [B, L'] is True, and where it is False: [B, C] each.

    The mean of an empty region is 0.
    """
    own = mask.to(tokens)[..., None]
    inside, outside = ((tokens * share).sum(dim=1) / share.sum(dim=1).clamp(min=1) for share in (own, 1 - own))
    return inside, outside
