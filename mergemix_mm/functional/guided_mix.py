"""GuidedMixup (https://arxiv.org/abs/2306.16612): pixels are shared by their saliency, and partners chosen by it.

Shapes: B batch, L pixels or patches.
"""

import torch
from torch import Tensor


def to_sum_one(saliency: Tensor) -> Tensor:
    """Maps [B, ...] >= 0 divided by their sums, in float32; a map of all 0 stays."""
    saliency = saliency.float()
    total = saliency.flatten(1).sum(dim=1).clamp(min=torch.finfo(saliency.dtype).tiny)
    return saliency / total.view(-1, *[1] * (saliency.ndim - 1))


def saliency_share(saliency: Tensor, partner: Tensor) -> Tensor:
    """The own share of each pixel, M = S_i / (S_i + S_j), where each map S is divided by its sum first.

    Args:
        saliency (Tensor): [B, L], >= 0, any floating dtype.
        partner (Tensor): [B] int64.

    Returns:
        Tensor: [B, L] float32 in [0, 1]; 1/2 where neither image has any saliency.
    """
    own = to_sum_one(saliency)
    both = own + own[partner]
    return torch.where(both > 0, own / torch.where(both > 0, both, 1), 0.5)


def greedy_cycle(saliency: Tensor) -> Tensor:
    """Partners whose saliency lies elsewhere: a cycle through the batch that goes to the farthest map each time.

    The distance of two maps, each divided by its sum, is that of L2. The cycle starts with the two farthest maps, goes
    on from the second one to the farthest that it has not visited, and closes at the first one.

    Args:
        saliency (Tensor): [B, L], >= 0, B >= 2, any floating dtype.

    Returns:
        Tensor: [B] int64, a single cycle: no image is its own partner. Among equal distances the first map wins.

    Raises:
        ValueError: if B < 2.
    """
    size = len(saliency)
    if size < 2:
        raise ValueError(f'batch_size={size}: a partner that is not the image itself needs at least 2 images')
    maps = to_sum_one(saliency)
    distance = torch.cdist(maps, maps).cpu().fill_diagonal_(-1)  # One transfer: each step depends on the last one.
    first, second = divmod(int(distance.argmax()), size)
    order = [first, second]
    while len(order) < size:
        distance[:, order[-2]] = -1
        order.append(int(distance[order[-1]].argmax()))
    partner = torch.empty(size, dtype=torch.int64)
    partner[order] = torch.tensor([*order[1:], order[0]])
    return partner.to(saliency.device)
