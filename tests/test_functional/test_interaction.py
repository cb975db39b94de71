"""Interaction intensity, by all backends, against hand-built weights and against each other; the AIA loss."""

import pytest
import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor

from mergemix_mm.functional import aia_loss, attention_with_intensity, interaction_intensity

WAYS = ('fused', 'lse', 'eager')
BATCH, LENGTH = 3, 12
INF = float('inf')


def padding_mask(side='right'):
    """[B, 1, L, L] bool: causal, with 0, 3 and 5 tokens of padding on one side."""
    real = torch.arange(LENGTH) < LENGTH - torch.tensor([0, 3, 5])[:, None]
    if side == 'left':
        real = real.flip(1)
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & real[:, None, None]


def float_mask(lowest, side='left'):
    return torch.zeros(BATCH, 1, LENGTH, LENGTH).masked_fill(~padding_mask(side), lowest)


# What a layer may be given.
CASES = {
    'full': dict(),
    'causal': dict(is_causal=True),
    'right padding': dict(attention_mask=padding_mask('right')),
    'left padding': dict(attention_mask=padding_mask('left')),
    'minimum': dict(attention_mask=float_mask(torch.finfo(torch.float32).min)),
    'half minimum': dict(attention_mask=float_mask(torch.finfo(torch.float16).min)),
    'infinity': dict(attention_mask=float_mask(-INF)),
    'bias': dict(attention_mask=torch.linspace(-3, 3, LENGTH).expand(BATCH, 4, LENGTH, LENGTH)),
    'scale': dict(scale=0.9, is_causal=True),
}


def draw(kv_heads=4, width=8, dtype=torch.float32, seed=0):
    """Query of 4 heads, key, value, and masks: samples differ in both, and the middle tokens count."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, heads, LENGTH, width) for heads in (4, kv_heads, kv_heads)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    places = torch.arange(LENGTH)
    query_mask = (places >= torch.tensor([[6], [7], [5]])) & (places < 10)
    key_mask = places < torch.tensor([[4], [6], [8]])
    return [tensor.requires_grad_() for tensor in tensors], (query_mask, key_mask)


def each(tensors, masks, **options):
    """Output, intensity and gradients of a scalar that depends on both, by every way."""
    for backend in WAYS:
        output, intensity = attention_with_intensity(*tensors, *masks, backend=backend, **options)
        weights = torch.tensor([1.0, -2.0, 3.0], dtype=intensity.dtype)
        scalar = (intensity * weights).sum() + output.double().square().mean()
        yield output, intensity, torch.autograd.grad(scalar, tensors)


def definition(query, key, masks, allowed):
    """The sums and means of the paper, entry by entry."""
    found = []
    for b in range(BATCH):
        total, queries = 0.0, masks[0][b].nonzero().flatten().tolist()
        for h in range(4):
            for q in queries:
                logits = (key[b, h] @ query[b, h, q]) * query.size(-1) ** -0.5
                weights = logits.masked_fill(~allowed[b, q], -INF).softmax(dim=0)
                total += float(weights[masks[1][b]].sum())
        found.append(total / (4 * len(queries)))
    return torch.tensor(found)


def test_a_hand_built_attention_matrix_gives_its_sums():
    # Queries are logarithms of the weights, keys are unit vectors: softmax gives the rows back.
    rows = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]])
    query, key = rows.log().view(1, 1, 4, 4), torch.eye(4).view(1, 1, 4, 4)
    query_mask, key_mask = torch.tensor([[True, True, False, True]]), torch.tensor([[False, True, True, False]])
    for backend in WAYS:
        found = interaction_intensity(query, key, query_mask, key_mask, scale=1.0, backend=backend)
        assert float(found) == pytest.approx(((0.2 + 0.3) + (0.3 + 0.2) + (0.1 + 0.1)) / 3, abs=1e-6)


@pytest.mark.parametrize('side', ['left', 'right'])
def test_the_intensity_is_that_of_the_definition(side):
    (query, key, value), masks = draw()
    allowed = padding_mask(side)
    masks = (masks[0] & allowed[:, 0, -1], masks[1])
    expected = definition(query.detach(), key.detach(), masks, allowed[:, 0])
    for _, intensity, _ in each((query, key, value), masks, attention_mask=allowed):
        torch.testing.assert_close(intensity, expected)


@pytest.mark.parametrize('kv_heads', [4, 2, 1])
@pytest.mark.parametrize('width', [8, 5])
@pytest.mark.parametrize('name', CASES)
def test_every_way_equals_eager_in_value_and_gradient(name, width, kv_heads):
    tensors, masks = draw(kv_heads, width)
    fused, lse, eager = each(tensors, masks, **CASES[name])
    torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', CASES)
def test_the_output_is_that_of_torch(name):
    (query, key, value), masks = draw()
    options = dict(CASES[name])
    mask = options.pop('attention_mask', None)
    if mask is not None and mask.dtype != torch.bool and name != 'bias':
        mask = mask == 0
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
    for output, _, _ in each((query, key, value), masks, **CASES[name]):
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize('name', ['full', 'causal', 'left padding', 'bias'])
@pytest.mark.parametrize('kv_heads', [4, 2])
def test_the_intensity_alone_is_the_one_beside_the_output(name, kv_heads):
    (query, key, value), masks = draw(kv_heads)
    _, expected = attention_with_intensity(query, key, value, *masks, **CASES[name])
    for backend in WAYS:
        found = interaction_intensity(query, key, *masks, backend=backend, **CASES[name])
        torch.testing.assert_close(found, expected)
        weights = torch.tensor([1.0, -2.0, 3.0])
        wanted = torch.autograd.grad((expected * weights).sum(), (query, key), retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), (query, key)), wanted)


@pytest.mark.parametrize('backend', ['fused', 'lse'])
@pytest.mark.parametrize('name', ['causal', 'left padding', 'minimum'])
def test_gradients_are_those_of_finite_differences(name, backend):
    tensors, masks = draw(kv_heads=2, width=3, dtype=torch.float64)
    function = lambda *inputs: attention_with_intensity(*inputs, *masks, backend=backend, **CASES[name])  # noqa: E731
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert function(*tensors)[1].dtype == torch.float64


@pytest.mark.parametrize('backend', WAYS)
@pytest.mark.parametrize('name', ['minimum', 'half minimum', 'infinity', 'left padding'])
def test_a_query_that_may_attend_nowhere_has_output_and_gradient_zero(name, backend):
    (query, key, value), masks = draw()
    output, intensity = attention_with_intensity(query, key, value, *masks, backend=backend, **CASES[name])
    (output.square().sum() + intensity.sum()).backward()
    assert output[2, :, :5].abs().max() == 0 and query.grad[2, :, :5].abs().max() == 0
    assert output[2, :, 5:].abs().min() > 0 and all(t.grad.isfinite().all() for t in (query, key, value))


@pytest.mark.parametrize('backend', WAYS)
def test_half_precision_stays_within_its_rounding(backend):
    tensors, masks = draw(kv_heads=2)
    _, exact = attention_with_intensity(*tensors, *masks, is_causal=True)
    output, found = attention_with_intensity(*[t.bfloat16() for t in tensors], *masks, is_causal=True, backend=backend)
    assert output.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize('backend', WAYS)
def test_autocast_runs_in_half_precision_with_float32_intensity_and_gradients(backend):
    tensors, masks = draw(kv_heads=2)
    _, exact = attention_with_intensity(*tensors, *masks, **CASES['minimum'])
    expected = torch.autograd.grad(exact.sum(), tensors[:2])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output, found = attention_with_intensity(*tensors, *masks, backend=backend, **CASES['minimum'])
    assert output.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-3)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), tensors[:2]), expected, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize('backend', WAYS)
def test_with_dropout_the_intensity_is_that_of_the_weights_behind_the_output(backend):
    (query, key, value), (query_mask, key_mask) = draw()
    options = dict(attention_mask=padding_mask(), dropout=0.5, backend=backend)
    torch.manual_seed(0)
    indicator = key_mask[:, None, :, None].expand_as(value).to(value)
    output, found = attention_with_intensity(query, key, indicator, query_mask, key_mask, **options)
    rows = output[..., 0].mean(dim=1)
    torch.testing.assert_close(found, (rows * query_mask).sum(dim=1) / query_mask.sum(dim=1))
    _, kept = attention_with_intensity(query, key, value, query_mask, key_mask, attention_mask=padding_mask())
    assert (found - kept).abs().max() > 1e-3
    draws = [attention_with_intensity(query, key, value, query_mask, key_mask, **options)[1] for _ in range(400)]
    torch.testing.assert_close(torch.stack(draws).mean(dim=0), kept, rtol=0, atol=0.03)


@pytest.mark.parametrize('backend', WAYS)
def test_a_sample_without_queries_or_keys_is_zero_and_leaves_the_others_alone(backend):
    tensors, (query_mask, key_mask) = draw()
    _, expected = attention_with_intensity(*tensors, query_mask, key_mask, is_causal=True, backend=backend)
    query_mask[0], key_mask[2] = False, False
    _, found = attention_with_intensity(*tensors, query_mask, key_mask, is_causal=True, backend=backend)
    assert found[0] == found[2] == 0 and found[1] == expected[1]
    valid = query_mask.any(dim=1) & key_mask.any(dim=1)
    target, delta = torch.tensor([0.1]), torch.tensor([0.05])
    loss = aia_loss(found[None], target, delta, valid)
    torch.testing.assert_close(loss, aia_loss(expected[None, 1:2], target, delta))
    loss.backward()
    for tensor in tensors[:2]:
        assert tensor.grad.isfinite().all() and tensor.grad[[0, 2]].abs().max() == 0 < tensor.grad[1].abs().max()


@pytest.mark.parametrize('kv_heads', [4, 2])
@pytest.mark.parametrize('alone', [True, False])
def test_only_the_eager_way_builds_a_map_of_queries_by_keys(alone, kv_heads):
    length, width = 512, 8
    query, key, value = (torch.randn(1, heads, length, width, requires_grad=True) for heads in (4, kv_heads, kv_heads))
    mask = torch.arange(length)[None] < 100
    largest = {}
    for backend in WAYS:
        with LargestTensor() as seen:
            if alone:
                found = interaction_intensity(query, key, ~mask, mask, is_causal=True, backend=backend)
            else:
                found = attention_with_intensity(query, key, value, ~mask, mask, is_causal=True, backend=backend)[1]
            found.sum().backward()
        largest[backend] = seen.elements
    assert largest['fused'] <= 4 * length * (width + 8) < length * length
    assert largest['lse'] <= 4 * length * width
    assert largest['eager'] >= 4 * length * length


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda q, k, v, qm, km: ((q[:, :, :7], k, v, qm[:, :7], km), dict(is_causal=True)), '7 queries and 12 keys'),
        (lambda *given: (given, dict(is_causal=True, attention_mask=padding_mask())), 'is_causal=True.*attention_mask'),
        (lambda q, k, v, qm, km: ((q, k[:, :3], v[:, :3], qm, km), {}), 'H a multiple of Hkv'),
        (lambda q, k, v, qm, km: ((q, k, v, qm, km.long()), {}), r'key_mask \[3, 12\] of torch.int64'),
        (lambda q, k, v, qm, km: ((q, k, v, qm[:, 1:], km), {}), r'query_mask \[3, 11\]'),
        (lambda *given: (given, dict(backend='flash')), "backend='flash'"),
    ],
)
def test_what_cannot_be_computed_is_refused(change, message):
    tensors, masks = draw()
    inputs, options = change(*tensors, *masks)
    with pytest.raises(ValueError, match=message):
        attention_with_intensity(*inputs, **options)


def test_more_keys_than_queries_work_with_a_mask():
    tensors, (query_mask, key_mask) = draw()
    whole = attention_with_intensity(*tensors, query_mask, key_mask, is_causal=True)
    late = [tensors[0][:, :, 4:], *tensors[1:]]
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[4:]
    for backend in WAYS:
        output, found = attention_with_intensity(
            *late, query_mask[:, 4:], key_mask, attention_mask=mask, backend=backend
        )
        torch.testing.assert_close((output, found), (whole[0][:, :, 4:], whole[1]))


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_huber_of_samples_and_layers():
    intensity = torch.tensor([[0.45, 0.1], [0.3, 0.32]], requires_grad=True)
    loss = aia_loss(intensity, torch.tensor([0.4, 0.3]), torch.tensor([0.2, 0.01]))
    # Quadratic, linear beyond delta, zero, linear.
    expected = [0.05**2 / 2, 0.2 * (0.3 - 0.1), 0.0, 0.01 * (0.02 - 0.005)]
    assert loss.item() == pytest.approx(sum(expected) / 4)
    loss.backward()
    torch.testing.assert_close(intensity.grad, torch.tensor([[0.05, -0.2], [0.0, 0.01]]) / 4)


def test_left_out_samples_count_neither_in_the_loss_nor_in_its_gradient():
    values, target, delta = torch.tensor([[0.45, 0.2]]), torch.tensor([0.4]), torch.tensor([0.2])
    intensity = torch.tensor([[0.45, float('nan'), 0.2]], requires_grad=True)
    loss = aia_loss(intensity, target, delta, torch.tensor([True, False, True]))
    torch.testing.assert_close(loss, aia_loss(values, target, delta))
    loss.backward()
    assert intensity.grad[0, 1] == 0 and (intensity.grad[0, [0, 2]] != 0).all()


def test_without_any_sample_the_loss_is_zero_and_still_has_a_gradient():
    intensity = torch.rand(2, 3, requires_grad=True)
    loss = aia_loss(intensity, torch.tensor([0.4, 0.3]), torch.tensor([0.2, 0.1]), torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and intensity.grad.abs().max() == 0


def test_targets_that_do_not_fit_the_layers_are_refused():
    intensity = torch.rand(2, 3)
    with pytest.raises(ValueError, match=r'target \[1\] and delta \[2\] must be \[2\]'):
        aia_loss(intensity, torch.rand(1), torch.rand(2))
    with pytest.raises(ValueError, match=r'valid \[2\] must be \[3\]'):
        aia_loss(intensity, torch.rand(2), torch.rand(2), torch.ones(2, dtype=torch.bool))
