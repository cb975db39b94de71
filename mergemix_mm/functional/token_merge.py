"""Token merging after ToMe (https://arxiv.org/abs/2210.09461): bipartite soft matching, merging, groups and schedules.

The state of merging is one index per original token (`TokenGroups`), composed over layers by a gather: O(B * L) memory, where a
source matrix would cost O(B * L * K). Shapes: B batch, L original tokens (prefix tokens included), N current tokens, K tokens
after merging, C channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Matching:
    """Which of N tokens merge into which, and where every token goes. Made by :func:`bipartite_soft_matching`.

    Args:
        kept (Tensor): [B, N - r] int64, positions of the tokens that stay, ascending.
        source (Tensor): [B, r] int64, positions of the tokens that merge away.
        target (Tensor): [B, r] int64, positions *among the kept tokens* that take them in.
        index (Tensor): [B, N] int64, the position among the kept tokens of every token, kept or merged.
    """

    kept: Tensor
    source: Tensor
    target: Tensor
    index: Tensor


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

    def merge(self, match: Matching) -> 'TokenGroups':
        """The partition after a further merging step."""
        return TokenGroups(match.index.gather(1, self.index), _sum_merged(self.size, match))

    def restore(self, values: Tensor) -> Tensor:
        """Give every original token the value of its group: the recovery R_{K->L} of MergeMix.

        Args:
            values (Tensor): [B, K, ...].

        Returns:
            Tensor: [B, L, ...].
        """
        if values.shape[:2] != self.size.shape:
            raise ValueError(f'values must start with [B, K] = {list(self.size.shape)}, got {list(values.shape)}')
        return _take(values, self.index)


def bipartite_soft_matching(metric: Tensor, r: int, protected: int = 0) -> Matching:
    """Match the r most similar pairs of tokens, sample by sample (ToMe, section 3).

    Tokens at even positions form set A, those at odd positions set B. Each token of A points to the most cosine-similar token of
    B, and the r most similar pairs are to merge. The order of the remaining tokens is the original one. Computed in float32,
    without gradient.

    Args:
        metric (Tensor): [B, N, C], what similarity is measured on: the attention keys, averaged over the heads.
        r (int): Pairs to merge per sample, 0 <= r <= (N - protected) // 2.
        protected (int): How many tokens at the front (class, distillation, register tokens) never merge. Defaults to 0.

    Returns:
        Matching: the tokens to keep and to merge; apply it with :func:`merge_tokens`.

    Raises:
        ValueError: if r is outside its range.
    """
    batch_size, num_tokens = metric.shape[:2]
    limit = (num_tokens - protected) // 2
    if not 0 <= r <= max(limit, 0):
        raise ValueError(
            f'r={r} pairs cannot be merged from {num_tokens} tokens, {protected} of them protected: '
            f'r must be in [0, {max(limit, 0)}]. merge_schedule(..., num_tokens=) keeps to this cap'
        )
    positions = torch.arange(num_tokens, device=metric.device)
    if r == 0:
        identity = positions.expand(batch_size, num_tokens)
        nothing = identity[:, :0]
        return Matching(identity, nothing, nothing, identity)

    free = positions[protected:]
    even, odd = free[free % 2 == 0], free[free % 2 == 1]
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        unit = F.normalize(metric.float(), dim=-1)
        best, partner = (unit[:, even] @ unit[:, odd].transpose(1, 2)).max(dim=-1)
        chosen = best.argsort(dim=-1, descending=True, stable=True)[:, :r]

    source = even[chosen]
    keep = torch.ones(batch_size, num_tokens, dtype=torch.bool, device=metric.device).scatter(1, source, False)
    # A kept token moves forward by the number of tokens that left before it.
    index = keep.cumsum(1) - 1
    target = index.gather(1, odd[partner.gather(1, chosen)])
    kept = keep.int().argsort(dim=1, descending=True, stable=True)[:, : num_tokens - r]
    return Matching(kept, source, target, index.scatter(1, source, target))


def merge_tokens(x: Tensor, groups: TokenGroups, match: Matching) -> tuple[Tensor, TokenGroups]:
    """Merge matched tokens into their size-weighted mean.

    Args:
        x (Tensor): [B, N, C] tokens.
        groups (TokenGroups): the groups that the N tokens stand for.
        match (Matching): which tokens merge, r of them per sample.

    Returns:
        tuple: tokens [B, N - r, C] in their original order and the dtype of x, and the new groups.
    """
    if match.source.size(1) == 0:
        return x, groups
    merged = groups.merge(match)
    # Weighted sums in float32: sizes reach hundreds, where bf16 no longer counts by ones.
    total = _sum_merged(x.float() * groups.size.unsqueeze(-1), match)
    return (total / merged.size.unsqueeze(-1)).to(x.dtype), merged


def merge_schedule(
    num_layers: int, total: int, inflection: float = 0.0, *, num_tokens: int | None = None, protected: int = 0
) -> list[int]:
    """How many tokens each layer merges, linear in depth (ToMe, appendix B).

    Layer l of n gets the share (1 - inflection) + 2 * inflection * l / (n - 1) of the mean total / n; what rounding leaves over
    goes to the layers with the largest remainders.

    Args:
        num_layers (int): Layers that may merge.
        total (int): Tokens to merge over all layers.
        inflection (float): -1 falls linearly to no merging in the last layer, 0 is constant, 1 rises from none in the first
            layer. Defaults to 0.0.
        num_tokens (int, optional): Tokens at the input, prefix tokens included. If given, no layer gets more than it can merge,
            half of its unprotected tokens: the excess moves on to later layers, or to earlier ones where these are full.
        protected (int): Prefix tokens that never merge. Defaults to 0.

    Returns:
        list[int]: one number per layer; they sum to exactly `total`.

    Raises:
        ValueError: if an argument is out of range or the layers cannot merge so many tokens.
    """
    if not -1 <= inflection <= 1:
        raise ValueError(f'inflection={inflection} must be in [-1, 1]')
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
    """Move what a layer cannot merge to others; `free` is the number of tokens that may merge."""
    remaining = sum(schedule)
    if _capacity(free, len(schedule)) < remaining:
        raise ValueError(
            f'total={remaining} tokens cannot be merged in {len(schedule)} layers: each layer merges at most half of its tokens, '
            f'{_capacity(free, len(schedule))} of {free} in all. Merge fewer tokens or use more layers (score at a later one)'
        )
    capped, excess = [], 0
    for layer, wanted in enumerate(schedule):
        merge = min(wanted + excess, free // 2)
        # The layers behind this one may not be able to take the rest: then this one takes more than its share.
        while _capacity(free - merge, len(schedule) - layer - 1) < remaining - merge:
            merge += 1
        excess += wanted - merge
        remaining -= merge
        free -= merge
        capped.append(merge)
    return capped


def _capacity(free: int, num_layers: int) -> int:
    """How many of `free` tokens so many layers can merge at most."""
    left = free
    for _ in range(num_layers):
        left -= left // 2
    return free - left


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values [B, N, ...] at index [B, M] -> [B, M, ...]."""
    return values.gather(1, _expand(index, values))


def _expand(index: Tensor, values: Tensor) -> Tensor:
    return index.view(*index.shape, *[1] * (values.ndim - 2)).expand(*index.shape, *values.shape[2:])


def _sum_merged(values: Tensor, match: Matching) -> Tensor:
    """values [B, N, ...] -> [B, N - r, ...]: kept tokens plus what merges into them."""
    source = _take(values, match.source)
    return _take(values, match.kept).scatter_add(1, _expand(match.target, source), source)
