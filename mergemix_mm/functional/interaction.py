"""Cross-modal interaction intensity of attention, and the AIA loss on it (https://arxiv.org/abs/2511.22663).

The intensity of a layer is the attention that queries of one modality pay to the keys of the other: summed over those
keys, mean over those queries and the heads. Attention sums values, so a value that is 1 at those keys and 0 elsewhere
gives the sum for every query: it takes one more column of the value, and never a map of all queries by all keys. The
same sum also follows from the log-sum-exp of every query, which attention kernels compute anyway; see
`lse_attention.py`.

Shapes: B samples, H heads, Hkv heads of keys and values (a divisor of H), L queries, S keys, D head width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .lse_attention import Places, attention_with_shares, pick_kernel

BACKENDS = ('auto', 'fused', 'lse', 'eager')
# Columns that the fused backend adds to the value. Only one is read. The others keep the width a multiple of 8, which
# the flash kernels of GPUs need.
EXTRA_COLUMNS = 8
# A float mask at or below this blocks its key. Libraries block with the smallest finite number; a row that holds only
# such numbers would otherwise spread attention evenly over all its keys, and send gradients to them.
BLOCKED = -1e4


def attention_with_intensity(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor,
    key_mask: Tensor,
    *,
    attention_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = 'fused',
    places: tuple[Places, Places] | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention and, from the same weights, its interaction intensity::

        intensity = 1 / (H * Q) * sum_h sum_{q in query_mask} sum_{k in key_mask} weights[h, q, k]

    with weights = softmax(query @ key.T * scale), and Q queries in the sample's mask. With dropout, the intensity is
    that of the weights after dropout, which make the output; its expectation is the intensity without dropout. Layers
    with soft caps or attention sinks are not supported.

    Args:
        query (Tensor): [B, H, L, D].
        key (Tensor): [B, Hkv, S, D].
        value (Tensor): [B, Hkv, S, D]; head h reads keys and values of head h * Hkv // H.
        query_mask (Tensor): [B, L] bool, the queries that count.
        key_mask (Tensor): [B, S] bool, the keys that count.
        attention_mask (Tensor, optional): bool, True where a query may attend, or float, added to the logits (values
            at or below -1e4 block); broadcastable to [B, H, L, S]. A query that may attend nowhere has output and
            intensity 0. Defaults to None.
        is_causal (bool): Whether a query sees no later keys; needs L = S and no `attention_mask`. Defaults to False.
        scale (float, optional): of the logits. Defaults to None: D ** -0.5.
        dropout (float): Share of the attention weights that is set to 0, in [0, 1). Defaults to 0.0.
        backend (str): How the sums of the weights are computed. All give the same result up to rounding.

            - ``'fused'``: one call of torch's attention with more columns. Memory is linear in S where that of the
              kernel is (on a CPU: without dropout).
            - ``'lse'``: one call at the layer's own width; its log-sum-exp gives the weights of the counted queries
              over the counted keys. Memory is linear in S. Where torch's kernel gives no log-sum-exp (dropout, a mask
              with gradient, on GPUs a width that 8 does not divide or a dtype without a kernel), this is ``'fused'``.
            - ``'eager'``: all weights in memory, softmax in float32. This is the reference, and the alternative for
              widths above 248, at which GPUs may leave the flash kernel.
            - ``'auto'``: the fastest for the device, dtype and width, see :func:`fastest_backend`.

            Defaults to ``'fused'``.
        places (tuple[Places, Places], optional): ``Places.of`` of both masks, for ``'lse'``. Finding them waits for the
            GPU, so layers that share masks find them once. Defaults to None: found here.

    Returns:
        tuple: output [B, H, L, D], and intensity [B] in [0, 1], float32 (float64 for float64 queries). A sample without
            queries or keys that count has intensity 0: exclude it with ``valid`` of :func:`aia_loss`.

    Raises:
        ValueError: if shapes do not fit, or an argument is out of its range.
    """
    _check(query, key, value, query_mask, key_mask, attention_mask, is_causal, backend)
    scale = query.size(-1) ** -0.5 if scale is None else scale
    options: dict[str, Any] = dict(attention_mask=attention_mask, is_causal=is_causal, scale=scale)
    backend = _resolve_backend(backend, query, attention_mask, dropout)
    if backend == 'lse':
        queries, keys = places or (Places.of(query_mask), Places.of(key_mask))
        return _lse(query, key, value, *queries, *keys, **options)
    if backend == 'eager':
        return _eager(query, key, value, query_mask, key_mask, dropout=dropout, **options)
    output, rows = _fused(query, key, value, key_mask, dropout=dropout, **options)
    return output, _mean_over_queries(rows, query_mask)


def interaction_intensity(
    query: Tensor,
    key: Tensor,
    query_mask: Tensor,
    key_mask: Tensor,
    *,
    attention_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    backend: str = 'fused',
    places: tuple[Places, Places] | None = None,
) -> Tensor:
    """Only the intensity, at the cost of one attention; arguments and errors of :func:`attention_with_intensity`.

    Returns:
        Tensor: [B] in [0, 1], float32 (float64 for float64 queries).
    """
    indicator = torch.zeros_like(key)
    _check(query, key, indicator, query_mask, key_mask, attention_mask, is_causal, backend)
    scale = query.size(-1) ** -0.5 if scale is None else scale
    options: dict[str, Any] = dict(attention_mask=attention_mask, is_causal=is_causal, scale=scale)
    backend = _resolve_backend(backend, query, attention_mask)
    if backend == 'lse':
        queries, keys = places or (Places.of(query_mask), Places.of(key_mask))
        return _lse(query, key, indicator, *queries, *keys, **options)[1]
    if backend == 'eager':
        return _eager(query, key, indicator, query_mask, key_mask, dropout=0.0, **options)[1]
    # Nobody needs the output, so the indicator takes the place of the value instead of adding columns to it.
    indicator[..., 0] = key_mask.unsqueeze(1)
    return _mean_over_queries(_torch_attention(query, key, indicator, dropout=0.0, **options)[..., 0], query_mask)


def fastest_backend(query: Tensor) -> str:
    """The backend that ``'auto'`` stands for: the fastest one measured for a query's device, dtype and width.

    The table is in docs/benchmarks/gpu.md (`tools/benchmarks/attention_backends.py` makes it): on an H200 a call of
    ``'fused'`` took less time than one of ``'lse'`` at every width and length, as the latter launches three times as
    many kernels; on CPUs the two differ by less than the machine's noise.
    """
    return 'fused'


def aia_loss(intensity: Tensor, target: Tensor, delta: Tensor, valid: Tensor | None = None) -> Tensor:
    """Attention interaction alignment: Huber loss of each sample's intensity in each layer, mean over both::

        e = |intensity - target|        e <= delta: e ** 2 / 2        else: delta * (e - delta / 2)

    Args:
        intensity (Tensor): [layers, B].
        target (Tensor): [layers], in [0, 1].
        delta (Tensor): [layers], > 0: where a layer's loss goes from quadratic to linear.
        valid (Tensor, optional): [B] bool, the samples that count. Defaults to None: all.

    Returns:
        Tensor: scalar; 0, with zero gradients, if no sample counts.

    Raises:
        ValueError: if shapes do not fit.
    """
    layers, samples = intensity.shape
    if target.shape != (layers,) or delta.shape != (layers,):
        raise ValueError(
            f'aia_loss: target {list(target.shape)} and delta {list(delta.shape)} must be [{layers}], one number for '
            f'each layer of intensity {list(intensity.shape)}'
        )
    if valid is None:
        valid = torch.ones(samples, dtype=torch.bool, device=intensity.device)
    elif valid.shape != (samples,):
        raise ValueError(f'aia_loss: valid {list(valid.shape)} must be [{samples}], one flag for each sample')
    target, delta = (values.to(intensity).unsqueeze(1) for values in (target, delta))
    # Excluded before the loss, not after it: zero times a NaN is NaN, so an excluded sample would reach the gradient.
    error = torch.where(valid, intensity - target, 0).abs()
    # Each branch sees only its own errors: `where` sends a zero gradient into the other branch, and zero times the
    # derivative of the square of an infinite error is NaN.
    near = error <= delta
    small, large = torch.where(near, error, 0), torch.where(near, 0, error)
    loss = torch.where(near, small**2 / 2, delta * (large - delta / 2))
    return loss.sum() / (layers * valid.sum().clamp(min=1))


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, L, D], and for every query the sum of its weights over the keys in the mask, [B, H, L]."""
    width = value.size(-1)
    indicator = value.new_zeros(*value.shape[:-1], EXTRA_COLUMNS)
    indicator[..., 0] = key_mask.unsqueeze(1)
    # Kernels need one width for query, key and value. The zeros change no product of query and key, and the scale of
    # the logits is given, so it does not follow the larger width.
    query, key = F.pad(query, (0, EXTRA_COLUMNS)), F.pad(key, (0, EXTRA_COLUMNS))
    value = torch.cat([value, indicator], dim=-1)
    output = _torch_attention(query, key, value, attention_mask, is_causal, scale, dropout)
    return output[..., :width], output[..., width]


def _resolve_backend(backend: str, query: Tensor, attention_mask: Tensor | None, dropout: float = 0.0) -> str:
    """The backend that computes. The log-sum-exp has no gradient of a mask, and knows nothing of dropout."""
    if backend == 'auto':
        backend = fastest_backend(query)
    masked_with_gradient = attention_mask is not None and attention_mask.requires_grad
    return 'fused' if backend == 'lse' and (dropout or masked_with_gradient) else backend


def _torch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout: float,
) -> Tensor:
    key, value = _repeat_where_needed(query, key, value, attention_mask)
    mask = _blocking(attention_mask, query.dtype)
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=query.size(1) != key.size(1),
    )
    if mask is None or not query.is_cuda:
        return output
    # cuDNN's kernel gives a query that may attend nowhere the mean of all values; the other kernels give it 0.
    seen = (mask if mask.dtype == torch.bool else mask > -torch.inf).any(dim=-1, keepdim=True)
    return torch.where(seen, output, 0)


# torch.compile takes this as one operation: it cannot trace the choice of a kernel, which depends on the device's
# capabilities.
@torch.compiler.allow_in_graph
def _lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_index: Tensor | None,
    query_real: Tensor,
    key_index: Tensor | None,
    key_real: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    query, key, value = (_autocast(x) for x in (query, key, value))
    key, value = _repeat_where_needed(query, key, value, attention_mask)
    bias = _blocking(attention_mask, query.dtype)
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill(~bias, -torch.inf)
    queries, keys = Places(query_index, query_real), Places(key_index, key_real)
    kernel = pick_kernel(query, key, value, bias, is_causal, scale)
    if kernel is None:
        # Only positions are at hand here; the fused backend reads a mask.
        key_mask = torch.zeros_like(key[:, 0, :, 0], dtype=torch.bool)
        key_mask = key_mask.scatter(1, keys.positions(key.size(2)), key_real)
        output, rows = _fused(query, key, value, key_mask, bias, is_causal, scale)
        shares = queries.take(rows)
    else:
        output, shares = attention_with_shares(query, key, value, queries, keys, bias, is_causal, scale, kernel)
    return output, _mean_over_queries(shares, query_real)


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor,
    key_mask: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    key, value = _repeat_heads(key, query.size(1)), _repeat_heads(value, query.size(1))
    logits = query @ key.transpose(-1, -2) * scale
    logits = logits.to(
        _at_least_float32(logits)
    )  # Softmax in half precision loses small weights, whose sum is what counts.
    bias = _causal(query.size(2), query.device) if is_causal else attention_mask
    weights = _softmax(logits, _blocking(bias, logits.dtype))
    weights = F.dropout(weights, dropout)
    output = weights.to(value.dtype) @ value
    return output, _mean_over_queries((weights * key_mask[:, None, None]).sum(dim=-1), query_mask)


def _softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax in which a row that is blocked everywhere is 0, with zero gradients.

    Softmax of minus infinities would be NaN, so blocked logits get the smallest finite number, and 0 afterwards.
    """
    if mask is None:
        return logits.softmax(dim=-1)
    allowed = mask
    if mask.dtype != torch.bool:
        allowed = mask > -torch.inf
        logits = logits + mask.masked_fill(~allowed, 0)
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(dim=-1) * allowed


def _blocking(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask in the form that all kernels understand: a blocked key is False, or minus infinity."""
    if mask is None or mask.dtype == torch.bool:
        return mask
    return mask.masked_fill(mask <= BLOCKED, -torch.inf).to(dtype)


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def _repeat_where_needed(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as the query, unless the kernel supports fewer (grouped heads)."""
    if query.is_cuda and attention_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        return key, value
    # No kernel for grouped heads takes a mask or float32: torch would build the map of all queries by all keys. CPU
    # kernels of older releases take no grouped heads at all.
    return _repeat_heads(key, query.size(1)), _repeat_heads(value, query.size(1))


def _autocast(x: Tensor) -> Tensor:
    """What autocast makes of an input of torch's own attention; the kernels below are called without autocast."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    return x if x.size(1) == num_heads else x.repeat_interleave(num_heads // x.size(1), dim=1)


def _mean_over_queries(attention: Tensor, query_mask: Tensor) -> Tensor:
    """Mean of [B, H, L] over the heads and the queries in the mask [B, L]."""
    attention = attention.to(_at_least_float32(attention)).mean(dim=1)
    return (attention * query_mask).sum(dim=1) / query_mask.sum(dim=1).clamp(min=1)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor,
    key_mask: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool,
    backend: str,
) -> None:
    batch, heads, queries, width = query.shape
    shapes = f'query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}'
    if key.shape != value.shape or key.size(0) != batch or key.size(3) != width or heads % key.size(1):
        raise ValueError(f'{shapes} must be [B, H, L, D] and twice [B, Hkv, S, D], with H a multiple of Hkv')
    for name, mask, length in (('query_mask', query_mask, queries), ('key_mask', key_mask, key.size(2))):
        if mask.shape != (batch, length) or mask.dtype != torch.bool:
            raise ValueError(
                f'{name} {list(mask.shape)} of {mask.dtype} must be [{batch}, {length}] of torch.bool for {shapes}'
            )
    if is_causal and queries != key.size(2):
        raise ValueError(
            f'is_causal=True with {queries} queries and {key.size(2)} keys: torch would align them at the first key. '
            'Give the positions as a bool attention_mask'
        )
    if is_causal and attention_mask is not None:
        raise ValueError('is_causal=True and an attention_mask exclude each other: put the causal part into the mask')
    if backend not in BACKENDS:
        raise ValueError(f'backend={backend!r} must be one of {BACKENDS}')
