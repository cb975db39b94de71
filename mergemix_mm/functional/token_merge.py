"""Token merging after ToMe (https://arxiv.org/abs/2210.09461): bipartite soft matching, merging, groups and schedules.

The state of merging is one index per original token (`TokenGroups`). Layers compose by a gather. This takes O(B * L)
memory, where a matrix of sources would take O(B * L * K). Shapes: B batch, L original tokens (prefix tokens included),
N current tokens, K tokens after merging, C channels.
"""

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Tokens of set A whose similarities are computed at a time, so that memory is linear in the number of tokens.
_ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class Matching:
    """Where each of N tokens goes when r of them merge. Made by :func:`bipartite_soft_matching`.

    Args:
        index (Tensor): [B, N] int64, the new token that each token becomes part of; 0 <= index < N - r. The new tokens
            keep the order of the old ones.
        num_tokens (int): N - r.
    """

    index: Tensor
    num_tokens: int


@dataclass(frozen=True)
class TokenGroups:
    """The partition of L original tokens into K current ones.

    Args:
        index (Tensor): [B, L] int64, which current token holds the original token; 0 <= index < K.
        size (Tensor): [B, K] float32, how many original tokens each current token holds; sums to L.
    """

    index: Tensor
    size: Tensor

    @classmethod
    def identity(cls, batch_size: int, num_tokens: int, device: torch.device | str | None = None) -> 'TokenGroups':
        """Groups of one token each: the state before any merging."""
        index = torch.arange(num_tokens, device=device).expand(batch_size, num_tokens)
        return cls(index, torch.ones(batch_size, num_tokens, device=device))

    def restore(self, values: Tensor) -> Tensor:
        """Give every original token the value of its group: the recovery R_{K->L} of MergeMix.

        Args:
            values (Tensor): [B, K, ...].

        Returns:
            Tensor: [B, L, ...].

        Raises:
            ValueError: If the values do not start with [B, K].
        """
        if values.shape[:2] != self.size.shape:
            raise ValueError(f'values must start with [B, K] = {list(self.size.shape)}, got {list(values.shape)}')
        return _take(values, self.index)


def bipartite_soft_matching(metric: Tensor, r: int, protected: int = 0) -> Matching:
    """Match the r most similar pairs of tokens, sample by sample (ToMe, section 3).

    Tokens at even positions form set A, those at odd positions set B. Each token of A points to the most
    cosine-similar token of B, and the r most similar pairs are to merge. The order of the remaining tokens is the
    original one. Computed in float32, without gradient.

    Args:
        metric (Tensor): [B, N, C], what similarity is measured on: the attention keys, averaged over the heads.
        r (int): Pairs to merge per sample, 0 <= r <= (N - protected) // 2.
        protected (int): How many tokens at the front (class, distillation, register tokens) never merge. Defaults to 0.

    Returns:
        Matching: the tokens to keep and to merge; apply it with :func:`merge_tokens`.

    Raises:
        ValueError: if r is outside its range.
    """
    batch_size, num_tokens = metric.size(0), static_int(metric.size(1))
    if protected < 0:
        raise ValueError(f'protected={protected} must be >= 0, the number of prefix tokens')
    limit = max((num_tokens - protected) // 2, 0)
    if not 0 <= r <= limit:
        raise ValueError(
            f'r={r} pairs cannot be merged from {num_tokens} tokens, {protected} of them protected: '
            f'r must be in [0, {limit}]. merge_schedule(..., num_tokens=) keeps to this cap'
        )
    positions = torch.arange(num_tokens, device=metric.device)
    if r == 0:
        return Matching(positions.expand(batch_size, num_tokens), num_tokens)

    even, odd = protected + protected % 2, protected + 1 - protected % 2  # The first free position of either kind.
    similarity, partner = _nearest(metric, even, odd)
    chosen = similarity.argsort(dim=-1, descending=True, stable=True)[:, :r]
    source, target = even + 2 * chosen, odd + 2 * partner.gather(1, chosen)

    # The new index of each token: a source takes that of its target, all others close the gaps.
    leaves = torch.zeros(batch_size, num_tokens, dtype=torch.int64, device=metric.device).scatter(1, source, 1)
    # Every token moves forward by the number of sources before it.
    index = positions - leaves.cumsum(1)
    return Matching(index.scatter(1, source, index.gather(1, target)), num_tokens - r)


def merge_tokens(x: Tensor, groups: TokenGroups, match: Matching) -> tuple[Tensor, TokenGroups]:
    """Merge matched tokens into their size-weighted mean.

    Args:
        x (Tensor): [B, N, C] tokens.
        groups (TokenGroups): the groups that the N tokens stand for.
        match (Matching): which tokens merge, r of them per sample.

    Returns:
        tuple: tokens [B, N - r, C] in their original order and the dtype of x, and the new groups.
    """
    if match.num_tokens == x.size(1):
        return x, groups
    rows = _flat_rows(match.index, match.num_tokens)
    size = _sum_merged(groups.size, match, rows)
    # Weighted sums in float32, the dtype of the sizes: they reach hundreds, and bfloat16 counts by ones only up to 256.
    total = _sum_merged(x * groups.size.unsqueeze(-1), match, rows)
    merged = TokenGroups(match.index.gather(1, groups.index), size)
    return (total / size.unsqueeze(-1)).to(x.dtype), merged


def merge_schedule(
    num_layers: int, total: int, inflection: float = 0.0, *, num_tokens: int | None = None, protected: int = 0
) -> list[int]:
    """How many tokens each layer merges, linear in depth (ToMe, appendix B).

    Layer l of n gets the share (1 - inflection) + 2 * inflection * l / (n - 1) of the mean total / n; the rest that
    rounding leaves goes to the layers with the largest remainders.

    Args:
        num_layers (int): Layers that may merge.
        total (int): Tokens to merge over all layers.
        inflection (float): -1 falls linearly to no merging in the last layer, 0 is constant, 1 rises from none in the
            first layer. Defaults to 0.0.
        num_tokens (int, optional): Tokens at the input, prefix tokens included. If given, no layer gets more than it
            can merge, which is half of its unprotected tokens. The excess moves to later layers, or to earlier ones if
            those are full. Defaults to None: no caps.
        protected (int): Prefix tokens that never merge. Defaults to 0.

    Returns:
        list[int]: one number per layer; they sum to exactly `total`.

    Raises:
        ValueError: if an argument is out of range or the layers cannot merge so many tokens.
    """
    if not -1 <= inflection <= 1:
        raise ValueError(f'inflection={inflection} must be in [-1, 1]')
    if num_tokens is not None and not 0 <= protected <= num_tokens:
        raise ValueError(f'protected={protected} must be in [0, num_tokens={num_tokens}]')
    if num_layers < 0 or total < 0 or (num_layers == 0 and total > 0):
        raise ValueError(f'total={total} tokens cannot be merged in num_layers={num_layers} layers')
    steps = max(num_layers - 1, 1)
    shares = [total / num_layers * (1 - inflection + 2 * inflection * layer / steps) for layer in range(num_layers)]
    if num_layers == 1:
        shares = [total]
    schedule = [int(share) for share in shares]
    by_remainder = sorted(range(num_layers), key=lambda layer: schedule[layer] - shares[layer])
    for layer in by_remainder[: total - sum(schedule)]:
        schedule[layer] += 1
    return schedule if num_tokens is None else _respect_caps(schedule, num_tokens - protected)


def _respect_caps(schedule: list[int], free: int) -> list[int]:
    """Move what a layer cannot merge to other layers; `free` is the number of tokens that may merge."""
    remaining = sum(schedule)
    if _capacity(free, len(schedule)) < remaining:
        raise ValueError(
            f'total={remaining} tokens cannot be merged in {len(schedule)} layers: each layer merges at most half of '
            f'its tokens, {_capacity(free, len(schedule))} of {free} in all. Merge fewer tokens, or over more layers'
        )
    capped, excess = [], 0
    for layer, wanted in enumerate(schedule):
        merge = min(wanted + excess, free // 2)
        # If the layers after this one cannot merge the rest, this one takes more than its share.
        while _capacity(free - merge, len(schedule) - layer - 1) < remaining - merge:
            merge += 1
        excess += wanted - merge
        remaining -= merge
        free -= merge
        capped.append(merge)
    return capped


def _capacity(free: int, num_layers: int) -> int:
    """The most of `free` tokens that so many layers can merge."""
    left = free
    for _ in range(num_layers):
        left -= left // 2
    return free - left


def static_int(size: int | Tensor) -> int:
    """A size as a number, also under `torch.jit.trace`, where sizes are tensors.

    It decides how tokens merge, so a traced or exported model holds for this number of tokens; the batch size stays
    free.
    """
    if isinstance(size, int):
        return size
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        return int(size)


@torch.no_grad()
def _nearest(metric: Tensor, even: int, odd: int) -> tuple[Tensor, Tensor]:
    """For every second token of [B, N, C] from `even` on: its highest cosine similarity to one of every second token
    from `odd` on, [B, A], and the index of that one among those.
    """
    with torch.autocast(metric.device.type, enabled=False):
        metric = F.normalize(metric.float(), dim=-1)
        tokens, others = metric[:, even::2], metric[:, odd::2].transpose(1, 2)
        found = [(rows @ others).max(dim=-1) for rows in tokens.split(_ROWS_AT_A_TIME, dim=1)]
    if len(found) == 1:
        return found[0].values, found[0].indices
    return torch.cat([best.values for best in found], 1), torch.cat([best.indices for best in found], 1)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values [B, N, ...] at index [B, M] -> [B, M, ...]. Copies whole rows; a gather would copy value by value."""
    rows = _flat_rows(index, values.size(1))
    return values.flatten(0, 1).index_select(0, rows).unflatten(0, index.shape)


def _sum_merged(values: Tensor, match: Matching, rows: Tensor) -> Tensor:
    """Sum the values of the tokens that become one: [B, N, ...] -> [B, N - r, ...]; `rows` are those of the result."""
    batch_size = values.size(0)  # Not len(), which torch.export and torch.jit.trace take for a constant.
    total = values.new_zeros(batch_size * match.num_tokens, *values.shape[2:])
    return total.index_add_(0, rows, values.flatten(0, 1)).unflatten(0, (batch_size, match.num_tokens))


def _flat_rows(index: Tensor, num_tokens: int) -> Tensor:
    """Positions [B, M] within samples of so many tokens -> rows of the flattened batch, [B * M]."""
    return (index + num_tokens * torch.arange(index.size(0), device=index.device).unsqueeze(1)).flatten()
