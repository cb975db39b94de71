"""Attention rows against full attention maps, and what restoring does to them."""

import pytest
import torch

from mergemix_mm.functional import (
    TokenGroups,
    bipartite_soft_matching,
    class_attention,
    merge_tokens,
    received_attention,
    restore_attention,
    top_down_saliency,
)


def full_map(query, key, size):
    logits = query @ key.transpose(-1, -2) / query.size(-1) ** 0.5
    return (logits + size.log()[:, None, None, :]).softmax(-1)


@pytest.fixture
def heads():
    torch.manual_seed(0)
    size = torch.randint(1, 5, (2, 9)).float()
    return torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4), size


def test_class_attention_is_the_first_row_of_the_full_map(heads):
    query, key, size = heads
    expected = full_map(query, key, size)[:, :, 0].mean(1)
    torch.testing.assert_close(class_attention(query[:, :, 0], key, size), expected)


@pytest.mark.parametrize('chunk_size', [1, 4, 64])
def test_received_attention_is_the_weighted_mean_over_the_rows_of_the_full_map(heads, chunk_size):
    query, key, size = heads
    weighted = (full_map(query, key, size).mean(1) * size.unsqueeze(-1)).sum(1)
    expected = weighted / size.sum(1, keepdim=True)
    torch.testing.assert_close(received_attention(query, key, size, size, chunk_size), expected)


@pytest.mark.parametrize('function', ['class', 'received'])
def test_values_weight_the_attention_of_each_head_by_their_norms(heads, function):
    query, key, size = heads
    value = torch.randn(2, 3, 9, 4)
    attention = full_map(query, key, size)
    expected = torch.zeros(2, 9)
    for image in range(2):
        for token in range(9):
            for head in range(3):
                votes = attention[image, head, :, token]
                given = votes[0] if function == 'class' else (votes * size[image]).sum()
                expected[image, token] += given * value[image, head, token].square().sum().sqrt()
    expected /= expected.sum(1, keepdim=True)
    if function == 'class':
        got = class_attention(query[:, :, 0], key, size, value)
    else:
        got = received_attention(query, key, size, size, chunk_size=4, value=value)
    torch.testing.assert_close(got, expected)


def test_a_token_without_a_value_has_no_saliency_however_much_attention_it_gets(heads):
    query, key, size = heads
    value = torch.ones(2, 3, 9, 4)
    torch.testing.assert_close(
        class_attention(query[:, :, 0], key, size, value), class_attention(query[:, :, 0], key, size)
    )
    value[:, :, 5] = 0
    row = class_attention(query[:, :, 0], key, size, value)
    assert float(row[:, 5].abs().max()) == 0
    torch.testing.assert_close(row.sum(1), torch.ones(2))
    assert class_attention(query[:, :, 0], key, size, value * 0).eq(0).all()


@pytest.mark.parametrize('function', ['class', 'received'])
def test_autocast_changes_nothing(heads, function):
    query, key, size = (tensor.bfloat16() if tensor.ndim == 4 else tensor for tensor in heads)

    def row():
        if function == 'class':
            return class_attention(query[:, :, 0], key, size)
        return received_attention(query, key, size, size)

    expected = row()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(row(), expected)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(expected.sum(1), torch.ones(2))


def test_restored_attention_keeps_its_mass_and_is_shared_within_a_group():
    torch.manual_seed(0)
    x = torch.randn(2, 10, 4)
    _, groups = merge_tokens(x, TokenGroups.identity(2, 10), bipartite_soft_matching(x, 4, 1))
    attention = torch.rand(2, 6).softmax(-1)
    restored = restore_attention(attention, groups)
    torch.testing.assert_close(restored.sum(1), torch.ones(2))
    assert torch.equal(restore_attention(attention, groups, proportional=False), groups.restore(attention))


def test_a_large_background_group_does_not_outvote_the_object():
    """A group of 80 equal background tokens draws more than one object token where attention is proportional."""
    key = torch.zeros(1, 1, 101, 2)
    key[..., 1:21, 0] = 2.0  # 20 object tokens, then 80 of background; the class token asks for the object.
    query = torch.tensor([[[2.0, 0.0]]])
    # The background has become one token of size 80.
    index = torch.cat([torch.arange(21), torch.full((80,), 21)])[None]
    groups = TokenGroups(index, torch.cat([torch.ones(1, 21), torch.full((1, 1), 80.0)], 1))
    attention = class_attention(query, key[:, :, :22], groups.size)

    def object_share(restored):
        return float((restored[:, 1:].topk(20).indices < 20).float().mean())

    assert object_share(restore_attention(attention, groups)) == 1.0
    assert object_share(groups.restore(attention)) == 0.0
    torch.testing.assert_close(restore_attention(attention, groups), class_attention(query, key), atol=1e-6, rtol=1e-5)


def test_top_down_saliency_favours_patches_that_resemble_the_class():
    attention = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    tokens = torch.tensor([[[3.0, 4.0], [-1.0, 0.0], [2.0, 0.0]]]).expand(2, -1, -1)
    weight = torch.tensor([[5.0, 0.0], [0.0, 0.0]])
    saliency = top_down_saliency(attention, tokens, weight)
    # Cosines 0.6, -1 and 1 with the first class; weights of 0 resemble nothing, and the attention is left.
    torch.testing.assert_close(saliency, torch.tensor([[0.3, 0.0, 0.2], [0.5, 0.3, 0.2]]))
