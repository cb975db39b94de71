"""Answer log-probabilities without full logits, and the SimPO loss (https://arxiv.org/abs/2405.14734) on them.

Shapes: B samples, L tokens, C channels, V vocabulary. Log-probabilities are float32.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# The label of positions that are not answered for, as in torch's cross entropy.
IGNORE_INDEX = -100
LOSS_TYPES = ('sigmoid', 'hinge')


def answer_logps(
    hidden: Tensor | Sequence[Tensor],
    head: Tensor | Callable[[Tensor], Tensor],
    labels: Tensor | Sequence[Tensor],
    ignore_index: int = IGNORE_INDEX,
    chunk_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Sum the log-probabilities of each sample's answer tokens, each predicted from the position before it.

    Only hidden states before answer tokens go through the head, `chunk_size` at a time. Their logits are computed again
    in the backward instead of being stored. Memory is O(chunk_size * V), where full logits take O(B * L * V). The
    gradient of the head's weight is summed over the chunks in float32, whatever the precision of the products is.

    Args:
        hidden (Tensor | Sequence[Tensor]): [B, L, C], the language model's last hidden states. Or those of several
            passes, whose B and L may differ: they share the calls of the head, and with them one gradient of its
            weight.
        head (Tensor | Callable): the head's weight [V, C], or a function from hidden states [N, C] to logits [N, V]
            (with bias, scale, soft cap, several layers).
        labels (Tensor | Sequence[Tensor]): [B, L] int64, token ids at answer positions and `ignore_index` elsewhere;
            of each pass.
        ignore_index (int): The label of positions without an answer token. Defaults to -100.
        chunk_size (int): Answer tokens per call of the head. Defaults to 1024.

    Returns:
        tuple: sums of log-probabilities [B] float32 (0 without answer tokens), and numbers of answer tokens [B] int64;
            of several passes, those of the first pass come first. The first token of a sample is never counted, since
            no position comes before it.

    Raises:
        ValueError: if shapes do not fit, or chunk_size < 1.
    """
    of_passes = [hidden] if isinstance(hidden, Tensor) else [*hidden]
    passes = list(zip(of_passes, [labels] if isinstance(labels, Tensor) else [*labels], strict=True))
    for states, targets in passes:
        if targets.shape != states.shape[:2]:
            raise ValueError(f'labels {list(targets.shape)} must be [B, L] of hidden {list(states.shape)}')
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise ValueError(f'chunk_size={chunk_size!r} must be an integer >= 1')
    # Answer tokens are taken out of each pass before the passes are joined: the rest is never copied.
    found = [_answers(states, targets, ignore_index) for states, targets in passes]
    states, targets, lengths = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*found))
    if isinstance(head, Tensor):
        logps = _linear_logps(states, head, targets, chunk_size)
    else:
        logps = _callable_logps(states, head, targets, chunk_size)
    # Samples have answers of different lengths: added up by row, instead of padded.
    rows = torch.repeat_interleave(lengths, output_size=len(logps))
    return logps.new_zeros(len(lengths)).index_add(0, rows, logps), lengths


def _answers(hidden: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [N, C] before the N answer tokens of a pass, their ids [N], and their number in each row [B]."""
    rows, positions = (labels[:, 1:] != ignore_index).nonzero(as_tuple=True)
    return hidden[rows, positions], labels[rows, positions + 1], torch.bincount(rows, minlength=len(labels))


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
    """Log-probabilities under softmax(states @ weight.T), chunk by chunk; the backward computes the logits again.

    States and weight are cast to `dtype` in here: a cast outside would round the gradient of the weight to it.
    """

    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, targets: Tensor, chunk_size: int, dtype: torch.dtype) -> Tensor:
        low = weight.to(dtype)
        chunks = zip(states.split(chunk_size), targets.split(chunk_size), strict=True)
        logps = [_gather_logps_((rows.to(dtype) @ low.T).float(), target) for rows, target in chunks]
        ctx.save_for_backward(states, weight, targets)
        ctx.chunk_size, ctx.dtype = chunk_size, dtype
        return torch.cat(logps)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, targets = ctx.saved_tensors
        low = weight.to(ctx.dtype)
        grad_states: list[Tensor] = []
        grad_weight: Tensor | None = None
        for rows, target, scale in zip(*(one.split(ctx.chunk_size) for one in (states, targets, grad)), strict=True):
            rows = rows.to(ctx.dtype)
            # d logp / d logits = onehot - softmax. In float32, as the onehot and a probability near 1 cancel.
            grad_logits = _softmax_((rows @ low.T).float()).mul_(-scale[:, None])
            grad_logits.scatter_add_(1, target[:, None], scale[:, None])
            grad_logits = grad_logits.to(ctx.dtype)
            if ctx.needs_input_grad[0]:
                grad_states.append((grad_logits @ low).to(states.dtype))
            if ctx.needs_input_grad[1]:
                grad_weight = _add_product(grad_weight, grad_logits.T, rows)
        grads = torch.cat(grad_states) if grad_states else None, grad_weight
        return grads[0], None if grads[1] is None else grads[1].to(weight.dtype), None, None, None


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total + left @ right; the sum is in float32, since one in bfloat16 loses what comes after 256 equal terms."""
    if total is None:
        return left @ right
    return total.addmm_(left, right) if left.dtype == total.dtype == torch.float32 else total.float().add_(left @ right)


def _gather_logps_(logits: Tensor, targets: Tensor) -> Tensor:
    """As `_gather_logps`, and the logits are overwritten: they are the largest tensors here, a copy would double the
    peak.
    """
    peak = logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(1, targets[:, None])
    return (chosen - peak - logits.sub_(peak).exp_().sum(dim=-1, keepdim=True).log_()).squeeze(1)


def _softmax_(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in place."""
    logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
    return logits.div_(logits.sum(dim=-1, keepdim=True))


def _linear_logps(states: Tensor, weight: Tensor, targets: Tensor, chunk_size: int) -> Tensor:
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    # The backward of a custom function runs without autocast.
    with torch.autocast(device, enabled=False):
        return _LinearLogps.apply(states, weight, targets, chunk_size, dtype)


def _callable_logps(states: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, chunk_size: int) -> Tensor:
    # Nothing is known of the head's inside, so checkpointing takes the place of a backward by hand.
    def logps(rows: Tensor, target: Tensor) -> Tensor:
        return _gather_logps(head(rows), target)

    device = states.device.type
    autocast = torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
    )
    chunks = zip(states.split(chunk_size), targets.split(chunk_size), strict=True)
    # Without the cache of weights, each chunk casts the head itself, so that their gradients are summed in float32.
    with autocast:
        return torch.cat([checkpoint(logps, rows, target, use_reentrant=False) for rows, target in chunks])


def _gather_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target [N] under logits [N, V], in float32: 3 digits are too few for a margin."""
    with torch.autocast(logits.device.type, enabled=False):
        return -F.cross_entropy(logits.float(), targets, reduction='none')
