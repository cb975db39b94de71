"""Answer log-probabilities without full logits, and the SimPO loss (https://arxiv.org/abs/2405.14734) on them.

Shapes: B samples, L tokens, C channels, V vocabulary. Log-probabilities are float32.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# The label of positions that are not answered for, as in torch's cross entropy.
IGNORE_INDEX = -100
LOSS_TYPES = ('sigmoid', 'hinge')


def answer_logps(
    hidden: Tensor,
    head: Tensor | Callable[[Tensor], Tensor],
    labels: Tensor,
    ignore_index: int = IGNORE_INDEX,
    chunk_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Sum the log-probabilities of each sample's answer tokens, each predicted from the position before it.

    Only hidden states before answer tokens go through the head, `chunk_size` at a time. Their logits are computed again
    in the backward instead of being stored. Memory is O(chunk_size * V), where full logits take O(B * L * V).

    Args:
        hidden (Tensor): [B, L, C], the language model's last hidden states.
        head (Tensor | Callable): the head's weight [V, C], or a function from hidden states [N, C] to logits [N, V]
            (with bias, scale, soft cap, several layers).
        labels (Tensor): [B, L] int64, token ids at answer positions and `ignore_index` elsewhere.
        ignore_index (int): The label of positions without an answer token. Defaults to -100.
        chunk_size (int): Answer tokens per call of the head. Defaults to 1024.

    Returns:
        tuple: sums of log-probabilities [B] float32 (0 without answer tokens), and numbers of answer tokens [B] int64.
            The first token of a sample is never counted, since no position comes before it.

    Raises:
        ValueError: if shapes do not fit, or chunk_size < 1.
    """
    if labels.shape != hidden.shape[:2]:
        raise ValueError(f'labels {list(labels.shape)} must be [B, L] of hidden {list(hidden.shape)}')
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise ValueError(f'chunk_size={chunk_size!r} must be an integer >= 1')
    rows, positions = (labels[:, 1:] != ignore_index).nonzero(as_tuple=True)
    states, targets = hidden[rows, positions], labels[rows, positions + 1]
    if isinstance(head, Tensor):
        logps = _linear_logps(states, head, targets, chunk_size)
    else:
        logps = _callable_logps(states, head, targets, chunk_size)
    # Samples have answers of different lengths: added up by row, instead of padded.
    sums = torch.zeros(len(labels), dtype=torch.float32, device=hidden.device).index_add(0, rows, logps)
    return sums, torch.bincount(rows, minlength=len(labels))


def simpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    margin: float | Tensor,
    label_smoothing: float = 0.0,
    loss_type: str = 'sigmoid',
) -> Tensor:
    """SimPO on mean log-probabilities per answer token, with z = beta * (chosen - rejected) - margin.

    - ``'sigmoid'``: -(1 - e) log sigmoid(z) - e log sigmoid(-z), e = label_smoothing (SimPO, equation 6, at e = 0);
    - ``'hinge'``: max(0, 1 - z).

    SimPO's target margin is ``margin = beta * gamma_beta_ratio``; mixed SimPO (MergeMix,
    https://arxiv.org/abs/2510.23479) takes ``margin = 1 - ratio`` per sample, outside beta.

    Args:
        chosen (Tensor): [B], of the preferred answers. Infinite log-probabilities give the limits of the loss: it is
            infinite where the preferred answer is impossible. Two equal infinities have the difference 0.
        rejected (Tensor): [B], of the others.
        beta (float): Scale of the reward, > 0 and finite.
        margin (float | Tensor): By how much the reward difference should exceed 0, a finite number or [B].
        label_smoothing (float): Probability that a preference is wrong, in [0, 0.5). Defaults to 0.0.
        loss_type (str): ``'sigmoid'`` or ``'hinge'``. Defaults to ``'sigmoid'``.

    Returns:
        Tensor: [B] float32, one loss per pair.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if not 0 < beta < math.inf:
        raise ValueError(f'beta={beta} must be > 0 and finite')
    if not isinstance(margin, Tensor) and not math.isfinite(margin):
        raise ValueError(f'margin={margin} must be a finite number')
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f'label_smoothing={label_smoothing} must be in [0, 0.5)')
    if loss_type not in LOSS_TYPES:
        raise ValueError(f'loss_type={loss_type!r} must be one of {LOSS_TYPES}')
    chosen, rejected = chosen.float(), rejected.float()
    # Infinity minus itself is NaN. It is replaced before the difference, since a NaN that `where` drops afterwards
    # would still reach the gradient.
    tied = chosen.isinf() & (chosen == rejected)
    z = beta * (torch.where(tied, 0, chosen) - torch.where(tied, 0, rejected)) - margin
    if loss_type == 'hinge':
        return F.relu(1 - z)
    loss = -(1 - label_smoothing) * F.logsigmoid(z)
    # Without smoothing the second term is left out: zero times infinity is NaN.
    return loss - label_smoothing * F.logsigmoid(-z) if label_smoothing else loss


class _LinearLogps(torch.autograd.Function):
    """Log-probabilities under softmax(states @ weight.T), chunk by chunk; the backward computes the logits again."""

    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, targets: Tensor, chunk_size: int) -> Tensor:
        chunks = zip(states.split(chunk_size), targets.split(chunk_size), strict=True)
        logps = [_gather_logps(rows @ weight.T, target) for rows, target in chunks]
        ctx.save_for_backward(states, weight, targets)
        ctx.chunk_size = chunk_size
        return torch.cat(logps)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, targets = ctx.saved_tensors
        grad_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(states), ctx.chunk_size):
            part = slice(start, start + ctx.chunk_size)
            # d logp / d logits = onehot - softmax. In float32, as the onehot and a probability near 1 cancel.
            grad_logits = _softmax_((states[part] @ weight.T).float()).mul_(-grad[part, None])
            grad_logits.scatter_add_(1, targets[part, None], grad[part, None])
            grad_logits = grad_logits.to(weight.dtype)
            if grad_states is not None:
                torch.mm(grad_logits, weight, out=grad_states[part])
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, states[part])
        return grad_states, grad_weight, None, None


def _softmax_(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in place: logits are the largest tensors here, a copy would double the peak."""
    logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
    return logits.div_(logits.sum(dim=-1, keepdim=True))


def _linear_logps(states: Tensor, weight: Tensor, targets: Tensor, chunk_size: int) -> Tensor:
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    # The backward of a custom function runs without autocast. A cast out here is part of the graph, so its gradient has
    # the right dtype.
    with torch.autocast(device, enabled=False):
        return _LinearLogps.apply(states.to(dtype), weight.to(dtype), targets, chunk_size)


def _callable_logps(states: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, chunk_size: int) -> Tensor:
    # Nothing is known of the head's inside, so checkpointing takes the place of a backward by hand.
    def logps(rows: Tensor, target: Tensor) -> Tensor:
        return _gather_logps(head(rows), target)

    chunks = zip(states.split(chunk_size), targets.split(chunk_size), strict=True)
    return torch.cat([checkpoint(logps, rows, target, use_reentrant=False) for rows, target in chunks])


def _gather_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target [N] under logits [N, V], in float32: 3 digits are too few for a margin."""
    with torch.autocast(logits.device.type, enabled=False):
        return -F.cross_entropy(logits.float(), targets, reduction='none')
