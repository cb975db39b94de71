"""Attention and the share of it that goes to some keys, from the log-sum-exp that torch's kernels compute anyway.

A kernel that builds no map of all queries by all keys still computes, for each query, the logarithm of the sum by which
softmax divides. With it, the weights between a few queries and a few keys are one small product::

    weights[q, k] = exp(query[q] @ key[k] * scale - lse[q])

The gradient of their sum over the keys, ``share[q]``, with respect to the logits has two parts. One stays in this
block: ``weights[q, k]``. The other goes to all keys: ``-share[q] * weights[q, :]``. Kernels have no input for the
second part, but their backward can carry it. It computes ``weights * (grad_out @ value.T - delta)`` with ``delta[q] =
grad_out[q] @ out[q]``, and uses the output only for delta. So moving the output along `grad_out` before the backward
adds any number to delta. That makes one call forward and one backward, at the width of the layer, by the kernel that
torch picks for it.

Shapes: B samples, H heads, Hkv heads of keys and values (a divisor of H), L queries, S keys, D head width.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

FLASH, EFFICIENT, CUDNN = (
    int(backend.value)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
)
# The memory-efficient kernel requires that rows of a mask begin at a multiple of so many elements.
MASK_ALIGNMENT = 16
# If a larger share of the positions counts, gathering them costs more than it saves.
LARGEST_GATHERED_SHARE = 0.75
# Gradients of a smaller norm count as 0: their squares, by which is divided, must stay normal numbers in float32.
SMALLEST_NORM = 1e-15


class Places(NamedTuple):
    """The positions at which a mask is True, row by row: they select a block of some queries and some keys.

    Args:
        index (Tensor, optional): [B, n] int64, in each row first the positions that count, then others as padding; n is
            the largest number of positions that count in a row. None: all positions in their order.
        real (Tensor): [B, n] bool, which of them count.
    """

    index: Tensor | None  # type: ignore[assignment]  # hides `tuple.index`, which has no use here
    real: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> 'Places':
        """Find them in a mask [B, L] bool. The size n depends on the data, so this waits for the GPU."""
        most = max(int(mask.sum(dim=1).max()), 1)
        if most > LARGEST_GATHERED_SHARE * mask.size(1):
            return cls(None, mask)
        index = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        return cls(index, mask.gather(1, index))

    def to(self, device: torch.device) -> 'Places':
        """The same on another device."""
        return Places(self.index if self.index is None else self.index.to(device), self.real.to(device))

    def positions(self, length: int) -> Tensor:
        """All of them as [B, n] int64, among `length`."""
        if self.index is None:
            return torch.arange(length, device=self.real.device).expand(len(self.real), -1)
        return self.index

    def take(self, x: Tensor) -> Tensor:
        """Their rows [B, H, n, ...] of x [B, H, L, ...]."""
        return x if self.index is None else x.gather(2, self._rows(x))

    def add(self, x: Tensor, rows: Tensor) -> Tensor:
        """x [B, H, L, ...] after `rows` [B, H, n, ...] were added to it, in place, at their positions."""
        return x.add_(rows) if self.index is None else x.scatter_add_(2, self._rows(rows), rows)

    def _rows(self, x: Tensor) -> Tensor:
        assert self.index is not None
        index = self.index.view(len(self.index), 1, -1, *[1] * (x.dim() - 3))
        return index.expand(-1, x.size(1), -1, *x.shape[3:])


def pick_kernel(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> int | None:
    """Torch's own choice of a kernel for this attention, a number of `SDPBackend`; None if it gives no log-sum-exp."""
    if query.device.type == 'cpu':  # Under torch.compile tensors have no data, and torch's own choice would be none.
        dense = all(x.numel() and x.stride(-1) == 1 for x in (query, key, value))
        return FLASH if dense and torch.backends.cuda.flash_sdp_enabled() else None
    if query.device.type not in _KERNELS or query.size(-1) % 8:  # Torch pads such widths for its kernels.
        return None
    grouped = query.size(1) != key.size(1)
    # The function is private, but the public one does not tell which kernel it takes.
    choice = torch._fused_sdp_choice(query, key, value, bias, 0.0, is_causal, scale=scale, enable_gqa=grouped)
    if choice not in _KERNELS[query.device.type]:
        return None
    return choice if bias is None else EFFICIENT  # The others take no mask, or one in another form.


def attention_with_shares(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Places,
    keys: Places,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    kernel: int,
) -> tuple[Tensor, Tensor]:
    """Attention, and for some queries the sum of their weights over some keys, with exact gradients of both.

    Args:
        query (Tensor): [B, H, L, D].
        key (Tensor): [B, Hkv, S, D]; Hkv = H on a CPU, and with a bias.
        value (Tensor): [B, Hkv, S, D].
        queries (Places): n positions in L.
        keys (Places): m positions in S.
        bias (Tensor, optional): [B or 1, H or 1, L or 1, S], of the query's dtype, added to the logits; minus infinity
            blocks. It gets no gradient.
        is_causal (bool): Whether a query sees no later keys.
        scale (float): of the logits.
        kernel (int): of :func:`pick_kernel`.

    Returns:
        tuple: output [B, H, L, D], and shares [B, H, n], float32 (float64 for float64 queries), 0 at places that do
            not count.
    """
    return _AttentionWithShares.apply(query, key, value, *queries, *keys, bias, is_causal, scale, kernel)


class _AttentionWithShares(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # Torch keeps whatever forward sets on it.
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_index: Tensor | None,
        query_real: Tensor,
        key_index: Tensor | None,
        key_real: Tensor,
        bias: Tensor | None,
        is_causal: bool,
        scale: float,
        kernel: int,
    ) -> tuple[Tensor, Tensor]:
        forward, _ = _KERNELS[query.device.type][kernel]
        mask = None if bias is None else _aligned(bias).expand(*query.shape[:3], key.size(2))
        output, lse, state, ctx.sizes = forward(query, key, value, mask, is_causal, scale)
        ctx.block = Places(query_index, query_real), Places(key_index, key_real), is_causal, scale
        ctx.kernel = kernel
        parts = [weights.sum(dim=-1) for *_, weights in _blocks(query, key, lse, bias, *ctx.block)]
        shares = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        ctx.save_for_backward(query, key, value, bias, mask, output, lse, shares, *state)
        return output, shares

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_shares: Tensor) -> tuple:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradients of gradients (create_graph=True): backend='lse' has none, backend='eager' has"
            )
        query, key, value, bias, mask, output, lse, shares, *state = ctx.saved_tensors
        queries, keys, is_causal, scale = ctx.block
        # The part of the gradient that goes to all keys: delta[q] grows by grad_shares[q] * shares[q].
        shift = queries.add(shares.new_zeros(query.shape[:3]), grad_shares * shares)
        output, grad_output = _shifted(output, grad_output, shift)
        _, backward = _KERNELS[query.device.type][ctx.kernel]
        tensors = (grad_output, query, key, value, mask, output, lse)
        grad_query, grad_key, grad_value = backward(*tensors, state, ctx.sizes, is_causal, scale)

        # What remains is the part of the gradient that stays in the block.
        parts: list[Tensor] = []
        grad_columns: Any = 0
        for part, rows, columns, weights in _blocks(query, key, lse, bias, *ctx.block):
            grad_logits = weights.mul_(grad_shares[:, :, part, None] * scale).to(query.dtype)
            parts.append(grad_logits @ columns)
            grad_columns = grad_columns + _product(grad_logits.mT, rows)
        grad_rows = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        # Heads that share a key add up.
        grad_columns = grad_columns.unflatten(1, (key.size(1), -1)).sum(dim=2).to(key.dtype)
        return queries.add(grad_query, grad_rows), keys.add(grad_key, grad_columns), grad_value, *[None] * 8


def _blocks(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    queries: Places,
    keys: Places,
    is_causal: bool,
    scale: float,
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """The weights of the queries that count over the keys that count, so many queries at a time that memory is linear.

    Yields:
        tuple: which of the queries, these [B, H, n, D], the keys [B, H, m, D], and weights [B, H, n, m], float32
            (float64).
    """
    length, heads = query.size(2), query.size(1)
    rows, columns = queries.take(query), keys.take(key)
    # Some kernels pad the rows, and cuDNN adds a dimension of 1. Their backward needs the log-sum-exp in that form, so
    # only this copy of it is trimmed.
    lse = lse.reshape(*query.shape[:2], -1)[..., :length]
    if key.size(1) != heads:
        columns = columns.repeat_interleave(heads // key.size(1), dim=1)
    if bias is not None:
        bias = queries.take(bias.expand(len(query), -1, length, key.size(2)))
        bias = keys.take(bias.mT).mT
    # Queries that do not count get weights of exp(-inf) = 0.
    lse = queries.take(lse).masked_fill(~queries.real.unsqueeze(1), torch.inf)
    places, key_places = queries.positions(length)[:, None, :, None], keys.positions(key.size(2))[:, None, None]
    # As many queries at a time as keep the block no larger than the keys.
    number = max(key.size(2) * key.size(3) // columns.size(2), 1)
    for start in range(0, rows.size(2), number):
        part = slice(start, start + number)
        logits, offset = _product(rows[:, :, part], columns.mT), -lse[:, :, part, None]
        allowed = keys.real[:, None, None]
        if is_causal:
            allowed = allowed & (key_places <= places[:, :, part])
        if bias is not None:
            offset, allowed = offset + bias[:, :, part], allowed & (bias[:, :, part] > -torch.inf)
        logits = torch.add(offset, logits, alpha=scale)
        yield part, rows[:, :, part], columns, torch.where(allowed, logits, -torch.inf).exp_()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of [B, H, n, m] tensors, summed and returned in float32 (float64), also for half precision."""
    wide = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and a.dtype != wide:
            # Tensor cores multiply half precision and sum in float32; a cast before would double the memory.
            product = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=wide)
            return product.unflatten(0, a.shape[:2])
        return a.to(wide) @ b.to(wide)


def _shifted(output: Tensor, grad: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient [B, H, L, D] with ``grad @ output`` larger by `shift` [B, H, L] in every row.

    The output moves along the gradient by ``shift / |grad|**2``. For a tiny gradient this would leave the range of the
    dtype, so the gradient of such a row first gets a first entry that is just large enough.
    """
    info, shift = torch.finfo(grad.dtype), shift.unsqueeze(-1)
    norm, first = torch.linalg.vector_norm(grad, dim=-1, keepdim=True, dtype=shift.dtype), grad[..., :1]
    least = (shift.abs() * (8 / info.max)).clamp(min=max(info.tiny * info.eps * 16, SMALLEST_NORM)).to(grad.dtype)
    small = (norm < least) & (shift != 0)
    step = torch.where(small, torch.copysign(least, first), 0)
    column = (torch.arange(grad.size(-1), device=grad.device) == 0).to(grad.dtype)
    grad = torch.addcmul(grad, step, column)
    # The square of the norm after the first entry changed, without another pass over the gradient.
    square = norm.square() + (grad[..., :1].to(shift.dtype).square() - first.to(shift.dtype).square())
    factor = torch.where(shift != 0, shift / square, 0)
    # `out` has the low precision: computed in float32, and rounded once.
    return torch.addcmul(output, grad, factor, out=torch.empty_like(output)), grad


def _aligned(bias: Tensor) -> Tensor:
    length = bias.size(-1)
    missing = -length % MASK_ALIGNMENT
    return F.pad(bias, (0, missing))[..., :length] if missing and length > 1 else bias


# --- torch's kernels: each forward returns (output, lse, further tensors, further sizes), for its backward -----------


def _cpu(query, key, value, bias, is_causal, scale):
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=bias, scale=scale
    )
    return output, lse, (), ()


def _cpu_backward(grad, query, key, value, bias, output, lse, state, sizes, is_causal, scale):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, output, lse, 0.0, is_causal, attn_mask=bias, scale=scale
    )


def _flash(query, key, value, bias, is_causal, scale):
    output, lse, starts, key_starts, length, key_length, seed, offset, _ = (
        torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, scale=scale)
    )
    return output, lse, (starts, key_starts, seed, offset), (length, key_length)


def _flash_backward(grad, query, key, value, bias, output, lse, state, sizes, is_causal, scale):
    starts, key_starts, seed, offset = state
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        grad, query, key, value, output, lse, starts, key_starts, *sizes, 0.0, is_causal, seed, offset, scale=scale
    )


def _efficient(query, key, value, bias, is_causal, scale):
    output, lse, *state = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, is_causal, scale=scale
    )
    return output, lse, state, ()


def _efficient_backward(grad, query, key, value, bias, output, lse, state, sizes, is_causal, scale):
    wanted = [True, True, True, False]
    return torch.ops.aten._scaled_dot_product_efficient_attention_backward(
        grad, query, key, value, bias, output, lse, *state, 0.0, wanted, is_causal, scale=scale
    )[:3]


def _cudnn(query, key, value, bias, is_causal, scale):
    output, lse, starts, key_starts, length, key_length, seed, offset, _ = (
        torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, bias, True, 0.0, is_causal, scale=scale)
    )
    return output, lse, (starts, key_starts, seed, offset), (length, key_length)


def _cudnn_backward(grad, query, key, value, bias, output, lse, state, sizes, is_causal, scale):
    starts, key_starts, seed, offset = state
    return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *(grad, query, key, value, output, lse, seed, offset, bias, starts, key_starts, *sizes, 0.0, is_causal),
        scale=scale,
    )


_KERNELS = dict(
    cpu={FLASH: (_cpu, _cpu_backward)},
    cuda={
        FLASH: (_flash, _flash_backward),
        EFFICIENT: (_efficient, _efficient_backward),
        CUDNN: (_cudnn, _cudnn_backward),
    },
)
