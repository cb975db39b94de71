"""Attention and the share of it that goes to some keys, from the log-sum-exp that torch's kernels compute anyway.

A kernel that builds no map of all queries by all keys still knows, for each query, the logarithm of the sum that
softmax divides by. With it, the weights between a few queries and a few keys are one small product::

    weights[q, k] = exp(query[q] @ key[k] * scale - lse[q])

The gradient of their sum over the keys, ``share[q]``, has a part that stays in this block and a part that goes to all
keys: ``-share[q] * weights[q, :]``. Kernels have no input for the second one, but they have a place: their backward
computes ``weights * (grad_out @ value.T - delta)`` with ``delta[q] = grad_out[q] @ out[q]``, and uses the output for
nothing else. An output that is moved along `grad_out` therefore adds any number to delta. So there is one call forward
and one backward, at the width of the layer, by the kernel that torch picks for it.

Shapes: B samples, H heads, Hkv heads of keys and values (a divisor of H), L queries, S keys, D head width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.attention import SDPBackend

FLASH, EFFICIENT, CUDNN = (
    int(backend.value)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
)
# Kernels that read a mask want its rows to begin at a multiple of so many elements.
MASK_ALIGNMENT = 16
# Norms of gradients below this count as 0: their squares must stay normal numbers in float32.
SMALLEST_NORM = 1e-15


class Places(NamedTuple):
    """The positions of a mask's True, row by row: what a block of some queries and some keys is cut out with.

    Args:
        index (Tensor): [B, n] int64, first the positions that count, then others; n is the largest number of a row.
        real (Tensor): [B, n] bool, which of them count.
    """

    index: Tensor
    real: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> 'Places':
        """Find them in a mask [B, L] bool. The size depends on the data: a GPU is waited for."""
        most = max(int(mask.sum(dim=1).max()), 1)
        index = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        return cls(index, mask.gather(1, index))

    def to(self, device: torch.device) -> 'Places':
        """The same on another device."""
        return Places(self.index.to(device), self.real.to(device))


def pick_kernel(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> int | None:
    """Torch's own choice of a kernel for this attention, a number of `SDPBackend`; None if it gives no log-sum-exp."""
    if query.device.type not in _KERNELS:
        return None
    grouped = query.size(1) != key.size(1)
    choice = torch._fused_sdp_choice(query, key, value, bias, 0.0, is_causal, scale=scale, enable_gqa=grouped)
    if choice not in _KERNELS[query.device.type]:
        return None
    if query.device.type == 'cpu':
        return choice
    if query.size(-1) % 8:
        return None  # Torch pads such widths for its kernels.
    return choice if bias is None else EFFICIENT  # The others want masks in forms of their own.


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
        queries (Places): [B, n] positions in L.
        keys (Places): [B, m] positions in S.
        bias (Tensor, optional): [B or 1, H or 1, L or 1, S], of the query's dtype, added to the logits; minus infinity
            blocks. It gets no gradient.
        is_causal (bool): Whether a query sees no later keys.
        scale (float): of the logits.
        kernel (int): of :func:`pick_kernel`.

    Returns:
        tuple: output [B, H, L, D], and shares [B, H, n], float32 (float64 for float64 queries), 0 at places that do
            not count.
    """
    if bias is not None:
        bias = _aligned(bias).expand(*query.shape[:3], key.size(2))
    return _AttentionWithShares.apply(query, key, value, *queries, *keys, bias, is_causal, scale, kernel)


class _AttentionWithShares(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_index: Tensor,
        query_real: Tensor,
        key_index: Tensor,
        key_real: Tensor,
        bias: Tensor | None,
        is_causal: bool,
        scale: float,
        kernel: int,
    ) -> tuple[Tensor, Tensor]:
        forward, _ = _KERNELS[query.device.type][kernel]
        output, lse, state, ctx.sizes = forward(query, key, value, bias, is_causal, scale)
        lse = lse.reshape(*query.shape[:2], -1)[..., : query.size(2)]  # Some kernels add rows, or a dimension of 1.
        ctx.block = Places(query_index, query_real), Places(key_index, key_real), is_causal, scale
        ctx.kernel = kernel
        blocks = _blocks(query, key, lse, bias, *ctx.block)
        shares = torch.cat([weights.sum(dim=-1) for _, _, _, weights in blocks], dim=-1)
        ctx.save_for_backward(query, key, value, bias, output, lse, shares, *state)
        return output, shares

    @staticmethod
    def backward(ctx: FunctionCtx, grad_output: Tensor, grad_shares: Tensor) -> tuple:
        query, key, value, bias, output, lse, shares, *state = ctx.saved_tensors
        queries, _, is_causal, scale = ctx.block
        index = queries.index.unsqueeze(1).expand_as(shares)
        shift = shares.new_zeros(lse.shape).scatter(2, index, grad_shares * shares)
        output, grad_output = _shifted(output, grad_output, shift)
        _, backward = _KERNELS[query.device.type][ctx.kernel]
        tensors = (grad_output, query, key, value, bias, output, lse)
        grad_query, grad_key, grad_value = backward(*tensors, state, ctx.sizes, is_causal, scale)

        grad_keys, start = 0, 0
        for query_index, taken, keys, weights in _blocks(query, key, lse, bias, *ctx.block):
            stop = start + taken.size(2)
            grad_logits = weights * (grad_shares[..., start:stop, None] * scale)
            with torch.autocast(query.device.type, enabled=False):
                grad_taken, grad_keys = grad_logits @ keys, grad_keys + grad_logits.mT @ taken
            grad_query = grad_query.scatter_add(2, query_index, grad_taken.to(grad_query.dtype))
            start = stop
        grad_keys = grad_keys.unflatten(1, (key.size(1), -1)).sum(dim=2).to(grad_key.dtype)
        grad_key = grad_key.scatter_add(2, _rows(ctx.block[1].index, key), grad_keys)
        return grad_query, grad_key, grad_value, *[None] * 8


def _blocks(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    queries: Places,
    keys: Places,
    is_causal: bool,
    scale: float,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The weights of the queries that count over the keys that count, so many queries at a time that memory is linear.

    Yields:
        tuple: index [B, H, n, D] of these queries, the queries [B, H, n, D] and the keys [B, H, m, D], and the weights
            [B, H, n, m], all float32 (float64).
    """
    wide, heads = torch.promote_types(query.dtype, torch.float32), query.size(1)
    taken_keys = key.gather(2, _rows(keys.index, key)).to(wide).repeat_interleave(heads // key.size(1), dim=1)
    rows = max(key.size(2) * key.size(3) // keys.index.size(1), 1)
    for index, real in zip(queries.index.split(rows, dim=1), queries.real.split(rows, dim=1), strict=True):
        query_index = _rows(index, query)
        taken = query.gather(2, query_index).to(wide)
        with torch.autocast(query.device.type, enabled=False):
            logits = taken @ taken_keys.mT * scale
        allowed = (real.unsqueeze(2) & keys.real.unsqueeze(1)).unsqueeze(1)
        if is_causal:
            allowed = allowed & (keys.index.unsqueeze(1) <= index.unsqueeze(2)).unsqueeze(1)
        if bias is not None:
            samples = torch.arange(len(index), device=index.device)[:, None, None]
            found = bias.transpose(1, 2)[samples, index.unsqueeze(2), :, keys.index.unsqueeze(1)].permute(0, 3, 1, 2)
            logits, allowed = logits + found, allowed & (found > -torch.inf)
        logits = logits - lse.gather(2, index.unsqueeze(1).expand(-1, heads, -1)).unsqueeze(3)
        yield query_index, taken, taken_keys, torch.where(allowed, logits, -torch.inf).exp()


def _rows(index: Tensor, x: Tensor) -> Tensor:
    """An index [B, n] of rows as `gather` wants it for x [B, H, L, D]."""
    return index[:, None, :, None].expand(-1, x.size(1), -1, x.size(3))


def _shifted(output: Tensor, grad: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient [B, H, L, D] with ``grad @ output`` larger by `shift` [B, H, L] in every row.

    Rows whose gradient is too small for an output within the dtype's range get one that is just large enough.
    """
    info, shift = torch.finfo(grad.dtype), shift.unsqueeze(-1)
    norm = torch.linalg.vector_norm(grad, dim=-1, keepdim=True, dtype=shift.dtype)
    least = (shift.abs() * (8 / info.max)).clamp(min=max(info.tiny * info.eps * 16, SMALLEST_NORM)).to(grad.dtype)
    small = (norm < least) & (shift != 0)
    first = torch.arange(grad.size(-1), device=grad.device) == 0
    grad = torch.where(small, torch.where(first, least, 0), grad)
    factor = shift / torch.where(small, least.to(shift.dtype), norm).square()
    return torch.where(shift != 0, output + grad * factor, output).to(output.dtype), grad


def _aligned(bias: Tensor) -> Tensor:
    length = bias.size(-1)
    missing = -length % MASK_ALIGNMENT
    return F.pad(bias, (0, missing))[..., :length] if missing and length > 1 else bias


# --- torch's kernels: what the forward gives is (output, lse, further tensors, further sizes) -------------------------


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
