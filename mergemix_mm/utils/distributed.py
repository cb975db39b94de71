"""What the processes of a step decide together: means over the samples that count, and who has images."""

import torch
from mmengine.dist import all_reduce
from torch import Tensor


def mean_over_ranks(count: Tensor) -> Tensor:
    """The mean over all ranks of how many tokens or pairs count, as the divisor of a sum. A collective.

    DDP averages gradients over the ranks. A loss that divides its local sum by this mean therefore averages over the
    tokens of all ranks, however unevenly these are spread.

    Args:
        count (Tensor): [] integer, the number on this rank. Not written to.

    Returns:
        Tensor: [] float32 > 0; 1 if nothing counts on any rank, so that the quotient is 0 and not NaN.
    """
    count = count.detach().float()
    all_reduce(count, 'mean')
    return torch.where(count > 0, count, torch.ones_like(count))


def only_elsewhere(here: bool) -> bool:
    """Whether another rank has something that this one does not have. A collective.

    Args:
        here (bool): Whether this rank has it.
    """
    found = torch.tensor(int(here))
    all_reduce(found, 'max')
    return bool(found) and not here


def mean_where(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of the valid values of this rank, for the log: without gradient.

    Args:
        values (Tensor): [B].
        valid (Tensor): [B] bool.

    Returns:
        Tensor: [], 0 without any valid value.
    """
    return torch.where(valid, values.detach(), 0).sum() / valid.sum().clamp(min=1)
