"""Cross-modal interaction intensity of attention, and the AIA loss on it (https://arxiv.org/abs/2511.22663).

The intensity of a layer is the attention that queries of one modality pay to the keys of the other: summed over those
keys, mean over those queries and the heads. Attention sums values, so a value that is 1 at those keys and 0 elsewhere
gives the sum for every query: one more column of the value, no map of all queries by all keys. Another way there is the
log-sum-exp of every query, which attention kernels compute anyway: see `lse_attention.py`.

Shapes: B samples, H heads, Hkv heads of keys and values (a divisor of H), L queries, S keys, D head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .lse_attention import Places, attention_with_shares, pick_kernel

BACKENDS = ('auto', 'fused', 'lse', 'eager')
# Columns that the fused way adds to the value: one is read, the others keep the width aligned for GPU kernels.
EXTRA_COLUMNS = 8
# A float mask at or below this blocks its key. A row of finite minima only would otherwise spread attention over all
# its keys, with gradients.
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
    that of the weights after dropout, the ones that make the output (its expectation is the intensity without). Soft
    caps and attention sinks have no argument here: a layer that has them is not served.

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
        backend (str): How the weights' sums come about; the results are the same up to rounding.

            - ``'fused'``: one call of torch's attention with more columns, memory linear in S where its kernels' is (on
              a CPU: without dropout).
            - ``'lse'``: one call at the layer's own width, and the weights of the counted queries over the counted keys
              from its log-sum-exp; memory linear in S. Where torch's kernel gives none (dropout, a mask with gradient,
              on GPUs a width that 8 does not divide or a dtype without kernel), this is ``'fused'``.
            - ``'eager'``: the weights in full, softmax in float32; the reference, and a way out for widths above 248,
              at which GPUs may leave the flash kernel.
            - ``'auto'``: the fastest for the device, dtype and width, see :func:`fastest_backend`.

            Defaults to ``'fused'``.
        places (tuple[Places, Places], optional): ``Places.of`` both masks, for ``'lse'``: calls that share masks look
            only once, which a GPU has to be waited for. Defaults to None: looked up here.

    Returns:
        tuple: output [B, H, L, D], and intensity [B] in [0, 1], float32 (float64 for float64 queries). 0 for a sample
            without queries or keys that count: leave it out by ``valid`` of :func:`aia_loss`.

    Raises:
        ValueError: if shapes do not fit, or an argument is out of its range.
    """
    _check(query, key, value, query_mask, key_mask, attention_mask, is_causal, backend)
    scale = query.size(-1) ** -0.5 if scale is None else scale
    options = dict(attention_mask=attention_mask, is_causal=is_causal, scale=scale)
    backend = _way(backend, query, attention_mask, dropout)
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
    """The intensity alone, at the price of one attention; arguments and errors of :func:`attention_with_intensity`.

    Returns:
        Tensor: [B] in [0, 1], float32 (float64 for float64 queries).
    """
    indicator = torch.zeros_like(key)
    _check(query, key, indicator, query_mask, key_mask, attention_mask, is_causal, backend)
    scale = query.size(-1) ** -0.5 if scale is None else scale
    options = dict(attention_mask=attention_mask, is_causal=is_causal, scale=scale)
    backend = _way(backend, query, attention_mask)
    if backend == 'lse':
        queries, keys = places or (Places.of(query_mask), Places.of(key_mask))
        return _lse(query, key, indicator, *queries, *keys, **options)[1]
    if backend == 'eager':
        return _eager(query, key, indicator, query_mask, key_mask, dropout=0.0, **options)[1]
    indicator[..., 0] = key_mask.unsqueeze(1)
    return _mean_over_queries(_torch_attention(query, key, indicator, dropout=0.0, **options)[..., 0], query_mask)


def fastest_backend(query: Tensor) -> str:
    """What ``backend='auto'`` stands for: the fastest way measured for a query's device, dtype and width.

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
        Tensor: a number; 0, with zero gradients, if no sample counts.

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
    # Before the loss, not after it: whatever a left-out sample holds (NaN) must not reach the gradient.
    error = torch.where(valid, intensity - target, 0).abs()
    # Each branch sees its own errors only: the square of an infinite one would make the gradient NaN.
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
    # Zeros change no product of query and key; kernels want one width for all three.
    query, key = F.pad(query, (0, EXTRA_COLUMNS)), F.pad(key, (0, EXTRA_COLUMNS))
    value = torch.cat([value, indicator], dim=-1)
    output = _torch_attention(query, key, value, attention_mask, is_causal, scale, dropout)
    return output[..., :width], output[..., width]


def _way(backend: str, query: Tensor, attention_mask: Tensor | None, dropout: float = 0.0) -> str:
    """The backend that computes: `auto` is one of the others, and the log-sum-exp way has its limits."""
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
    # cuDNN's kernel gives a query that sees nothing the mean of all values.
    seen = (mask if mask.dtype == torch.bool else mask > -torch.inf).any(dim=-1, keepdim=True)
    return torch.where(seen, output, 0)


# torch.compile takes this as one piece: it could not follow the choice of a kernel.
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
    logits = logits.to(_wide(logits))
    bias = _causal(query.size(2), query.device) if is_causal else attention_mask
    weights = _softmax(logits, _blocking(bias, logits.dtype))
    weights = F.dropout(weights, dropout)
    output = weights.to(value.dtype) @ value
    return output, _mean_over_queries((weights * key_mask[:, None, None]).sum(dim=-1), query_mask)


def _softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax in which a row that is blocked everywhere is 0, with zero gradients."""
    if mask is None:
        return logits.softmax(dim=-1)
    allowed = mask
    if mask.dtype != torch.bool:
        allowed = mask > -torch.inf
        logits = logits + mask.masked_fill(~allowed, 0)
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(dim=-1) * allowed


def _blocking(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask with every way to block written as what the kernels know: False, or minus infinity."""
    if mask is None or mask.dtype == torch.bool:
        return mask
    return mask.masked_fill(mask <= BLOCKED, -torch.inf).to(dtype)


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def _repeat_where_needed(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as the query, unless the kernel that reads them can do with fewer."""
    if query.is_cuda and attention_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        return key, value
    # Else torch may build the map: no kernel for grouped heads takes a mask or float32, and older CPU kernels want all.
    return _repeat_heads(key, query.size(1)), _repeat_heads(value, query.size(1))


def _autocast(x: Tensor) -> Tensor:
    """As autocast hands it to torch's own attention."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    return x if x.size(1) == num_heads else x.repeat_interleave(num_heads // x.size(1), dim=1)


def _mean_over_queries(attention: Tensor, query_mask: Tensor) -> Tensor:
    """Mean of [B, H, L] over the heads and the queries in the mask [B, L]."""
    attention = attention.to(_wide(attention)).mean(dim=1)
    return (attention * query_mask).sum(dim=1) / query_mask.sum(dim=1).clamp(min=1)


def _wide(x: Tensor) -> torch.dtype:
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
