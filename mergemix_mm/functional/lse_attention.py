"""Attention and the share of it that goes to some keys, from the log-sum-exp that torch's kernels compute anyway.

A kernel that builds no map of all queries by all keys still knows, for each query, the logarithm of the sum that
softmax divides by. A second call, of the queries that count with the keys that count, gives that of a part of the sum::

    share[q] = exp(lse[q, some keys] - lse[q, all keys])

Kernels have no input for a gradient of the log-sum-exp, ``grad_lse[q] * weights[q, :]`` of the logits. But they have a
place for it: their backward computes ``weights * (grad_out @ value.T - delta)``, ``delta[q] = grad_out[q] @ out[q]``,
and uses the output for nothing else. An output that is moved at one place adds any number to delta. So the attention is
one call forward and one backward at the width of the layer, by the kernel that torch picks for it; the second call is
small where few queries or few keys count. No tensor is larger than a mask of the queries and the keys that count.

Shapes: B samples, H heads, Hkv heads of keys and values (a divisor of H), L queries, S keys, D head width.
"""

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
# Share of the positions that count from which cutting them out costs more than it saves.
MOST = 0.75
# Gradients below this count as 0.
SMALLEST = 1e-15
# Width of a value that nobody reads; kernels of GPUs want 8 at least.
EMPTY_WIDTH = 8


class Places(NamedTuple):
    """The positions of a mask's True, row by row: what a block of some queries and some keys is cut out with.

    Args:
        index (Tensor, optional): [B, n] int64, first the positions that count, then others; n is the largest number of
            a row. None: all positions in their order, where most count and cutting out would cost more than it saves.
        real (Tensor): [B, n] bool, which of them count.
    """

    index: Tensor | None
    real: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> 'Places':
        """Find them in a mask [B, L] bool. The size depends on the data: a GPU is waited for."""
        most = max(int(mask.sum(dim=1).max()), 1)
        if most > MOST * mask.size(1):
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
        index = self.index.view(len(self.index), 1, -1, *[1] * (x.dim() - 3))
        return index.expand(-1, x.size(1), -1, *x.shape[3:])


def pick_kernel(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> int | None:
    """Torch's own choice of a kernel for this attention, a number of `SDPBackend`; None if it gives no log-sum-exp."""
    if query.device.type == 'cpu':  # Asked under torch.compile, where tensors have no data, torch would say: none.
        dense = all(x.numel() and x.stride(-1) == 1 for x in (query, key, value))
        return FLASH if dense and torch.backends.cuda.flash_sdp_enabled() else None
    if query.device.type not in _KERNELS or query.size(-1) % 8:  # Torch pads such widths for its kernels.
        return None
    grouped = query.size(1) != key.size(1)
    choice = torch._fused_sdp_choice(query, key, value, bias, 0.0, is_causal, scale=scale, enable_gqa=grouped)
    if choice not in _KERNELS[query.device.type]:
        return None
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
        ctx: FunctionCtx,
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
        device, shape = query.device.type, (*query.shape[:3], key.size(2))
        forward, _ = _KERNELS[device][kernel]
        mask = None if bias is None else _aligned(bias).expand(shape)
        output, lse, state, ctx.sizes = forward(query, key, value, mask, is_causal, scale)
        queries, keys = Places(query_index, query_real), Places(key_index, key_real)
        some_bias, counted = _bias_of_block(queries, keys, bias, is_causal, shape, query.dtype)
        rows, columns = queries.take(query), _repeat(keys.take(key), query.size(1))
        empty = columns.new_zeros(*columns.shape[:3], query.size(3) if device == 'cpu' else EMPTY_WIDTH)
        some_forward, _ = _BLOCK_KERNELS[device]
        _, some, some_state, _ = some_forward(rows, columns, empty, some_bias, False, scale)
        difference = _rows_of(some, rows) - queries.take(_rows_of(lse, query))
        shares = torch.where(counted, difference.exp(), 0)

        ctx.places, ctx.options, ctx.kernel, ctx.states = (queries, keys), (is_causal, scale), kernel, len(state)
        tensors = query, key, value, mask, output, lse, some_bias, columns, empty, some, shares
        ctx.save_for_backward(*tensors, *state, *some_state)
        return output, shares

    @staticmethod
    def backward(ctx: FunctionCtx, grad_output: Tensor, grad_shares: Tensor) -> tuple:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradients of gradients (create_graph=True): backend='lse' has none, backend='eager' has"
            )
        query, key, value, mask, output, lse, some_bias, columns, empty, some, shares, *states = ctx.saved_tensors
        state, some_state = states[: ctx.states], states[ctx.states :]
        (queries, keys), (is_causal, scale) = ctx.places, ctx.options
        grad_lse = grad_shares * shares  # Of the block; that of all keys is its negative.

        shift = grad_lse
        if queries.index is not None:
            shift = queries.add(grad_lse.new_zeros(query.shape[:3]), grad_lse)
        output, grad_output = _shifted(output, grad_output, shift)
        _, backward = _KERNELS[query.device.type][ctx.kernel]
        tensors = grad_output, query, key, value, mask, output, lse
        grad_query, grad_key, grad_value = backward(*tensors, state, ctx.sizes, is_causal, scale)

        _, some_backward = _BLOCK_KERNELS[query.device.type]
        grad_some, some_output = _factors(-grad_lse, empty)
        tensors = grad_some, queries.take(query), columns, empty, some_bias, some_output, some
        grad_rows, grad_columns, _ = some_backward(*tensors, some_state, (), False, scale)
        if key.size(1) != columns.size(1):
            grad_columns = grad_columns.unflatten(1, (key.size(1), -1)).sum(dim=2)
        return queries.add(grad_query, grad_rows), keys.add(grad_key, grad_columns), grad_value, *[None] * 8


def _bias_of_block(
    queries: Places, keys: Places, bias: Tensor | None, is_causal: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What is added to the logits of the queries and keys that count.

    Returns:
        tuple: bias [B, H, n, m], and [B, 1 or H, n] bool: the queries that count and see a key that counts.
    """
    batch, heads, length, key_length = shape
    allowed = keys.real[:, None, None]
    if is_causal:
        positions, key_positions = queries.positions(length), keys.positions(key_length)
        allowed = allowed & (key_positions[:, None, None] <= positions[:, None, :, None])
    if bias is not None:
        bias = queries.take(bias.expand(batch, -1, length, key_length))
        bias = keys.take(bias.mT).mT
        allowed = allowed & (bias > -torch.inf)
    seen = allowed.any(dim=3, keepdim=True)
    allowed = allowed | ~seen  # Kernels differ in what a row without any key gives them.
    found = torch.where(allowed, 0 if bias is None else bias.masked_fill(~seen, 0), -torch.inf).to(dtype)
    found = _aligned(found).expand(batch, heads, queries.real.size(1), keys.real.size(1))
    return found, seen[..., 0] & queries.real.unsqueeze(1)


def _shifted(output: Tensor, grad: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient [B, H, L, D] with ``grad @ output`` larger by `shift` [B, H, L] in every row.

    The first entry of each row is moved. Where its gradient is too small for an output within the dtype's range, the
    gradient becomes just large enough.
    """
    info = torch.finfo(grad.dtype)
    output, grad = output.clone(), grad.clone()
    first, factor = output[..., 0], grad[..., 0]
    least = (shift.abs() * (8 / info.max)).clamp(min=max(info.tiny * info.eps * 16, SMALLEST)).to(grad.dtype)
    moves = shift != 0
    factor.copy_(torch.where((factor.abs() < least) & moves, torch.copysign(least, factor), factor))
    first.copy_(torch.where(moves, first + shift / factor, first))
    return output, grad


def _factors(x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and output [B, H, n, W] in the dtype and width of `like` whose products sum up to x [B, H, n]."""
    grad = like.new_ones(*x.shape, like.size(-1))
    if like.dtype == torch.float16:  # Its range is too small.
        x, exponent = torch.frexp(x)
        grad.copy_(torch.ldexp(grad[..., 0].float(), exponent).unsqueeze(-1))
    output = torch.zeros_like(grad)
    output[..., 0] = x
    output[..., 1] = x - output[..., 0]  # What rounding took away.
    return grad, output


def _rows_of(lse: Tensor, query: Tensor) -> Tensor:
    """A kernel's log-sum-exp as [B, H, L]: some add rows, cuDNN a dimension of 1, and want it back like that."""
    return lse.reshape(*query.shape[:2], -1)[..., : query.size(2)]


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x if x.size(1) == heads else x.repeat_interleave(heads // x.size(1), dim=1)


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
# Those of the block take a mask and any width of the value.
_BLOCK_KERNELS = dict(cpu=_KERNELS['cpu'][FLASH], cuda=_KERNELS['cuda'][EFFICIENT])
