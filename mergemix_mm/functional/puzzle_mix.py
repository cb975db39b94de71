"""Puzzle Mix (https://arxiv.org/abs/2009.06962): a mask of least energy over cells, and cells moved to where they show.

Each cell of the mask shows a share z of the image's own cell: 0, 1/2 or 1. The energy of a mask is

    E(z) = - sum_p (z_p s_p + (1 - z_p) t_p) - eta / n sum_p log P(z_p)
           + beta / (16 sqrt(n)) sum_pq ((z_p - z_q)^2 + gamma phi_pq(z_p, z_q))

with the saliency s of the image and t of its partner, each of sum 1 over n cells, neighbours p and q, and 2 z drawn
from the binomial distribution of two draws with probability lambda. phi is how much the pixels differ on both sides of
the border between p and q, as they are shown. For shares of 1/2 it is continued as the paper does: a part that is
linear in each share, and a part that multiplies (z_p - z_q)^2. The factors 1 / n and 1 / (16 sqrt(n)) are those of the
authors' code (snu-mllab/PuzzleMix, ``mixup.py``).

Shapes: B batch, n = R * C cells in R rows and C columns, H x W pixels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .guided_mix import to_sum_one

# Pixels along a border that are averaged before both sides are compared.
_NEIGHBOURHOOD = 4


@dataclass
class MaskCosts:
    """The energy of a mask, up to a constant per image.

    Args:
        unary (Tensor): [B, R, C, 3], the cost of a share of 0, 1/2 and 1 for each cell.
        down (Tensor): [B, R - 1, C], >= 0, the weight of (z_p - z_q)^2 for each cell and the one below it.
        across (Tensor): [B, R, C - 1], >= 0, the same for each cell and the one to its right.
    """

    unary: Tensor
    down: Tensor
    across: Tensor

    def energy(self, labels: Tensor) -> Tensor:
        """The energy [B] of labels [B, R, C] in {0, 1, 2}, which are twice the shares."""
        chosen = self.unary.gather(3, labels[..., None])[..., 0].sum(dim=(1, 2))
        share = labels.to(self.unary) / 2
        down = (self.down * share.diff(dim=1).square()).sum(dim=(1, 2))
        return chosen + down + (self.across * share.diff(dim=2).square()).sum(dim=(1, 2))


def mask_costs(
    saliency: Tensor,
    partner: Tensor,
    images: Tensor,
    lam: Tensor,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
) -> MaskCosts:
    """The costs of the energy of a mask, as the module's docstring has it.

    Args:
        saliency (Tensor): [B, R, C], >= 0, of each cell.
        partner (Tensor): [B] int64.
        images (Tensor): [B, 3, H, W] with pixels in a range of length 1; H and W are multiples of R and C.
        lam (Tensor): [B] in [0, 1], lambda.
        beta (float): Weight of smoothness, >= 0. Defaults to 1.2.
        gamma (float): Weight of the pixels at borders, in [0, 1]. Defaults to 0.5.
        eta (float): Weight of the prior, >= 0. Defaults to 0.2.

    Returns:
        MaskCosts: in float32.
    """
    rows, cols = saliency.shape[-2:]
    own = to_sum_one(saliency)
    share = own.new_tensor([0, 0.5, 1])
    shown = own[..., None] * share + own[partner][..., None] * (1 - share)
    lam = lam.to(own)
    prior = torch.stack([(1 - lam) ** 2, 2 * lam * (1 - lam), lam**2], dim=1).clamp(min=1e-8).log()
    unary = -shown - eta / (rows * cols) * prior[:, None, None]
    weight = beta / (16 * math.sqrt(rows * cols))
    pixels = images.float()
    # Columns are compared as the rows of the transposed images.
    down = _add_borders(unary, pixels, partner, (rows, cols), weight, gamma)
    across = _add_borders(unary.transpose(1, 2), pixels.mT, partner, (cols, rows), weight, gamma)
    return MaskCosts(unary, down, across.mT)


def transport_costs(saliency: Tensor, share: Tensor, t_eps: float = 0.8) -> Tensor:
    """What it costs to move each cell to each place: t_eps * distance - s_k z_l.

    The sum over a permutation is the part of the paper's objective that the moves decide: the path, less the saliency
    that is shown.

    Args:
        saliency (Tensor): [B, R, C], >= 0; divided by its sum.
        share (Tensor): [B, R, C] in [0, 1], how much of each place the image shows.
        t_eps (float): Weight of the squared distance, in which a grid has a side of 1. Defaults to 0.8.

    Returns:
        Tensor: [B, n, n] float32, from the cell of the row to the place of the column.
    """
    rows, cols = saliency.shape[-2:]
    place = torch.cartesian_prod(*(torch.linspace(0, 1, size, device=saliency.device) for size in (rows, cols)))
    distance = (place[:, None] - place).square().sum(dim=-1)
    return t_eps * distance - to_sum_one(saliency).flatten(1)[:, :, None] * share.float().flatten(1)[:, None]


def move_cells(images: Tensor, source: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put the cell `source[l]` of each image at its place l.

    Args:
        images (Tensor): [B, 3, H, W], H and W multiples of the grid.
        source (Tensor): [B, n] int64, a permutation of the cells for each image, row by row.
        grid (tuple[int, int]): Rows and columns of cells.

    Returns:
        Tensor: [B, 3, H, W], new memory.
    """
    rows, cols = grid
    cells = images.unflatten(3, (cols, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = cells[torch.arange(len(images), device=images.device)[:, None], source]
    return moved.unflatten(1, (rows, cols)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def _add_borders(
    unary: Tensor, pixels: Tensor, partner: Tensor, grid: tuple[int, int], weight: float, gamma: float
) -> Tensor:
    """Add to `unary` the linear part of phi between each cell and the one below, and return the weights [B, R - 1, C].

    phi is d[u, v] for shares u of the upper and v of the lower cell in {0, 1}. It equals, up to a constant,
    u (d10 + d11) / 2 + (1 - u) (d00 + d01) / 2 + v (d01 + d11) / 2 + (1 - v) (d00 + d10) / 2
    + (u - v)^2 (d10 + d01 - d11 - d00) / 2, and this form is defined for shares of 1/2 as well.
    """
    other = pixels[partner]
    d11 = _differences(pixels, pixels, grid)
    d10, d01, d00 = _differences(pixels, other, grid), _differences(other, pixels, grid), d11[partner]
    factor = weight * gamma / 2
    share = unary.new_tensor([0, 0.5, 1])
    for cells, own, others in ((unary[:, :-1], d10 + d11, d00 + d01), (unary[:, 1:], d01 + d11, d00 + d10)):
        cells += factor * (own[..., None] * share + others[..., None] * (1 - share))
    # Differences are at most 1, so this is negative only for pixels out of their range.
    return (weight + factor * (d10 + d01 - d11 - d00)).clamp(min=0)


def _differences(upper: Tensor, lower: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean difference between the last rows of the cells of one image and the first rows below, in another one.

    Images [B, 3, H, W] twice -> [B, R - 1, C].
    """
    rows, cols = grid
    height, width = upper.size(2) // rows, upper.size(3) // cols
    strip = (math.gcd(height, _NEIGHBOURHOOD), math.gcd(width, _NEIGHBOURHOOD))
    # Only the strips along the borders are read.
    last = upper.unflatten(2, (rows, height))[:, :, :-1, height - strip[0] :].mean(dim=3)
    first = lower.unflatten(2, (rows, height))[:, :, 1:, : strip[0]].mean(dim=3)
    last, first = (x.unflatten(3, (-1, strip[1])).mean(dim=4) for x in (last, first))
    difference = (last - first).abs().mean(dim=1)
    return F.avg_pool2d(difference[:, None], (1, width // strip[1]))[:, 0]
