"""What processes do together: means over the samples that count, and steps that fail on all of them or on none."""

import errno
from collections.abc import Callable

import torch
from mmengine.dist import all_gather_object, all_reduce, broadcast_object_list
from torch import Tensor

from .files import WriteError


def together(step: Callable) -> list:
    """Run a step on all processes, fail on all if it failed on one. A collective.

    If only one process failed, the others would wait for it in the next collective.

    Args:
        step (Callable): Called without arguments; what it returns can be pickled.

    Returns:
        list: One element, what the step returned on the main process.

    Raises:
        WriteError: If the step failed on another process only.
    """
    result = error = None
    try:
        result = step()
    except Exception as raised:
        error = raised
    outcomes = all_gather_object(None if error is None else (getattr(error, 'errno', None), str(error)))
    if error is not None:
        raise error
    if failed := [outcome for outcome in outcomes if outcome is not None]:
        number, text = failed[0]
        raise WriteError(number or errno.EIO, f'another process could not save its part: {text}')
    results = [result]
    broadcast_object_list(results)
    return results


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
