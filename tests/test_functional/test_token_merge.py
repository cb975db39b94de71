"""Token merging against a per-sample reference, and its invariants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor

from mergemix_mm.functional import TokenGroups, bipartite_soft_matching, merge_schedule, merge_tokens


def reference_groups(metric, steps, protected):
    """One sample, with loops: metric [N, C] -> the members of every token that is left, in order."""
    members = [[i] for i in range(len(metric))]
    for r in steps:
        keys = [metric[group].mean(0) for group in members]
        unit = [key / key.norm() for key in keys]
        evens = [i for i in range(protected, len(members)) if i % 2 == 0]
        odds = [i for i in range(protected, len(members)) if i % 2 == 1]
        best = {i: max(odds, key=lambda j: float(unit[i] @ unit[j])) for i in evens}
        leaving = sorted(evens, key=lambda i: -float(unit[i] @ unit[best[i]]))[:r]
        for i in leaving:
            members[best[i]] = members[best[i]] + members[i]
        members = [group for i, group in enumerate(members) if i not in leaving]
    return members


@pytest.mark.parametrize('protected', [0, 1, 2])
@pytest.mark.parametrize('num_tokens', [8, 11, 18])
def test_merging_equals_a_per_sample_reference_over_several_layers(num_tokens, protected):
    torch.manual_seed(num_tokens + protected)
    x, metric = torch.randn(3, num_tokens, 5), torch.randn(3, num_tokens, 4)
    steps = [(num_tokens - protected) // 2 - 1, 1, 1]

    tokens, keys, groups = x, metric, TokenGroups.identity(3, num_tokens)
    for r in steps:
        match = bipartite_soft_matching(keys, r, protected)
        keys, _ = merge_tokens(keys, groups, match)
        tokens, groups = merge_tokens(tokens, groups, match)

    for b in range(3):
        members = reference_groups(metric[b], steps, protected)
        torch.testing.assert_close(tokens[b], torch.stack([x[b, group].mean(0) for group in members]))
        assert groups.size[b].tolist() == [len(group) for group in members]
        for position, group in enumerate(members):
            assert groups.index[b, group].tolist() == [position] * len(group)


@settings(max_examples=60, deadline=None)
@given(
    batch_size=st.integers(1, 3),
    num_tokens=st.integers(2, 24),
    protected=st.integers(0, 2),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_groups_partition_the_tokens_and_sizes_add_up(batch_size, num_tokens, protected, shares, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch_size, num_tokens, 3, generator=generator)
    groups, first, protected = TokenGroups.identity(batch_size, num_tokens), x, min(protected, num_tokens)
    for share in shares:
        r = int(share * ((x.size(1) - protected) // 2))
        x, groups = merge_tokens(x, groups, bipartite_soft_matching(x, r, protected))
    kept = x.size(1)

    assert groups.index.shape == (batch_size, num_tokens)
    assert groups.size.sum(1).tolist() == [num_tokens] * batch_size
    for b in range(batch_size):
        assert groups.index[b].unique().tolist() == list(range(kept)), 'every current token holds an original one'
        assert torch.equal(groups.index[b].bincount(minlength=kept).float(), groups.size[b])
    assert torch.equal(groups.index[:, :protected], torch.arange(protected).expand(batch_size, -1))
    assert torch.equal(groups.size[:, :protected], torch.ones(batch_size, protected))
    # A merged token is the mean of its members: attention and feature mass is preserved.
    torch.testing.assert_close((x * groups.size.unsqueeze(-1)).sum(1), first.sum(1), atol=1e-4, rtol=1e-4)
    mass = torch.rand(batch_size, kept, generator=generator)
    torch.testing.assert_close(groups.restore(mass / groups.size).sum(1), mass.sum(1))


def test_each_sample_has_a_matching_of_its_own():
    similar_first = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    similar_last = torch.tensor([[-1.0, 0], [0, 1], [1, 0], [1, 0]])
    match = bipartite_soft_matching(torch.stack([similar_first, similar_last]), 1)
    assert match.index.tolist() == [[0, 0, 1, 2], [0, 1, 2, 2]]


def test_matching_in_chunks_equals_matching_at_once(monkeypatch):
    torch.manual_seed(0)
    metric = torch.randn(2, 21, 4)
    at_once = bipartite_soft_matching(metric, 6, 1)
    monkeypatch.setattr('mergemix_mm.functional.token_merge._ROWS_AT_A_TIME', 3)
    assert torch.equal(bipartite_soft_matching(metric, 6, 1).index, at_once.index)


def test_r_zero_changes_nothing():
    x, groups = torch.randn(2, 5, 3), TokenGroups.identity(2, 5)
    merged, same = merge_tokens(x, groups, bipartite_soft_matching(x, 0))
    assert merged is x
    assert same is groups


@pytest.mark.parametrize(('num_tokens', 'protected', 'r'), [(5, 0, 3), (5, 1, 3), (6, 0, -1), (2, 2, 1)])
def test_r_outside_its_range_is_an_error_that_names_the_cap(num_tokens, protected, r):
    with pytest.raises(ValueError, match=rf'r={r} .* must be in \[0, {(num_tokens - protected) // 2}\]'):
        bipartite_soft_matching(torch.randn(1, num_tokens, 2), r, protected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_low_precision_matches_as_its_float32_values_do(dtype):
    metric = torch.randn(2, 16, 8).to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = bipartite_soft_matching(metric, 5, 1)
    assert torch.equal(low.index, bipartite_soft_matching(metric.float(), 5, 1).index)
    merged, groups = merge_tokens(metric, TokenGroups.identity(2, 16), low)
    assert merged.dtype == dtype
    assert groups.size.dtype == torch.float32


def test_gradient_flows_to_every_merged_token_by_its_weight():
    x = torch.randn(1, 8, 2, requires_grad=True)
    merged, groups = merge_tokens(x, TokenGroups.identity(1, 8), bipartite_soft_matching(x, 4))
    merged.sum().backward()
    expected = 1 / groups.restore(groups.size)
    torch.testing.assert_close(x.grad, expected.unsqueeze(-1).expand_as(x))


def test_restore_refuses_values_of_another_length():
    with pytest.raises(ValueError, match=r'\[B, K\] = \[1, 4\], got \[1, 5\]'):
        TokenGroups.identity(1, 4).restore(torch.zeros(1, 5))


@given(st.integers(1, 24), st.integers(0, 300), st.integers(-20, 20).map(lambda n: n / 20))
def test_schedule_sums_to_exactly_the_total_and_is_monotone(num_layers, total, inflection):
    schedule = merge_schedule(num_layers, total, inflection)
    assert len(schedule) == num_layers
    assert sum(schedule) == total
    assert schedule == sorted(schedule, reverse=inflection <= 0)


def test_schedule_is_linear_in_depth():
    assert merge_schedule(4, 12, 0.0) == [3, 3, 3, 3]
    assert merge_schedule(3, 12, -1.0) == [8, 4, 0]
    assert merge_schedule(3, 12, -0.5) == [6, 4, 2]
    assert merge_schedule(3, 12, 1.0) == [0, 4, 8]


def capacity(free, num_layers):
    for _ in range(num_layers):
        free = math.ceil(free / 2)
    return free


@given(st.integers(1, 6), st.integers(2, 80), st.integers(0, 80), st.floats(-1, 1), st.integers(0, 2))
def test_schedule_keeps_to_the_cap_of_every_layer_or_raises(num_layers, num_tokens, total, inflection, protected):
    free = num_tokens - protected
    if total > free - capacity(free, num_layers):
        with pytest.raises(ValueError, match=f'total={total} tokens cannot be merged in {num_layers} layers'):
            merge_schedule(num_layers, total, inflection, num_tokens=num_tokens, protected=protected)
        return
    schedule = merge_schedule(num_layers, total, inflection, num_tokens=num_tokens, protected=protected)
    assert sum(schedule) == total
    for r in schedule:
        assert 0 <= r <= free // 2
        free -= r


def test_schedule_moves_the_excess_to_layers_with_room():
    assert merge_schedule(3, 7, -1.0) == [5, 2, 0]
    assert merge_schedule(3, 7, -1.0, num_tokens=9, protected=1) == [4, 2, 1], 'on to later layers'
    assert merge_schedule(2, 6, 1.0) == [0, 6]
    assert merge_schedule(2, 6, 1.0, num_tokens=8) == [4, 2], 'and back, where no later layer could take it'


@pytest.mark.parametrize(
    ('args', 'message'), [((4, 8, 1.5), 'inflection=1.5'), ((0, 3), 'num_layers=0'), ((4, -1), 'total=-1')]
)
def test_schedule_refuses_arguments_out_of_range(args, message):
    with pytest.raises(ValueError, match=message):
        merge_schedule(*args)


def test_a_merging_layer_launches_few_operations_and_copies_its_tokens_to_float32_once():
    x, keys = torch.randn(2, 50, 32).bfloat16(), torch.randn(2, 50, 8).bfloat16()
    with LargestTensor() as seen:
        merge_tokens(x, TokenGroups.identity(2, 50), bipartite_soft_matching(keys, 9, 1))
    assert seen.operations <= 32 and seen.elements == x.numel()
