"""The log-sum-exp way to the intensity: its gradient trick in every dtype, its blocks, and what it leaves to others."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch.nn.attention import SDPBackend, sdpa_kernel

from mergemix_mm.functional import attention_with_intensity, interaction, interaction_intensity, lse_attention
from mergemix_mm.functional.interaction import fastest_backend
from mergemix_mm.functional.lse_attention import Places

HEADS, LENGTH, WIDTH = 4, 40, 16


def draw(dtype=torch.float32, kv_heads=HEADS, length=LENGTH, seed=0):
    """Query, key and value of two samples, and masks: late queries, early keys."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, heads, length, WIDTH) for heads in (HEADS, kv_heads, kv_heads)]
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    places = torch.arange(length)
    return tensors, (places >= torch.tensor([[10], [5]]), places < torch.tensor([[6], [9]]))


def gradients(tensors, masks, backend, output_weight=1.0, **options):
    output, intensity = attention_with_intensity(*tensors, *masks, backend=backend, **options)
    scalar = output_weight * output.float().square().mean() + (intensity * torch.tensor([1.0, -2.0])).sum()
    return intensity, torch.autograd.grad(scalar, tensors)


# --- the trick: an output that adds a number to grad @ output -------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('size', [0.0, 1e-30, 1e-8, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize('shift', [1e-4, 0.05, 30.0])
def test_a_shifted_output_adds_its_number_for_gradients_of_any_size(dtype, size, shift):
    generator = torch.Generator().manual_seed(0)
    output, grad = (torch.randn(1, 2, 50, 64, generator=generator).double() for _ in range(2))
    output, grad = output.to(dtype), (grad * size).to(dtype)
    wanted = shift * torch.linspace(-1, 1, 50).expand(1, 2, 50).to(torch.promote_types(dtype, torch.float32))
    moved, changed = lse_attention._shifted(output, grad, wanted)
    assert moved.dtype == changed.dtype == dtype and moved.isfinite().all() and changed.isfinite().all()
    # The gradient itself changes where it is next to nothing only: an eighth of what float16 holds may be needed.
    room = max(8 * shift / torch.finfo(dtype).max, 1e-6 if dtype == torch.float16 else 1e-15)
    assert (changed.double() - grad.double()).abs().max() <= 1.01 * room
    before, after = ((x.double() * y.double()).sum(dim=-1) for x, y in ((output, changed), (moved, changed)))
    largest = (changed.double().norm(dim=-1) * moved.double().norm(dim=-1)).max()
    torch.testing.assert_close(
        after - before, wanted.double(), rtol=0, atol=4 * float(largest) * torch.finfo(dtype).eps
    )


def test_rows_without_a_shift_stay_as_they_are():
    output, grad = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 3, 8)
    grad[0, 0, 0] = 0
    moved, changed = lse_attention._shifted(output, grad, torch.tensor([[[0.0, 0.0, 1.0]]]))
    assert torch.equal(moved[0, 0, :2], output[0, 0, :2]) and torch.equal(changed, grad)
    assert not torch.equal(moved[0, 0, 2], output[0, 0, 2])


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('output_weight', [1.0, 0.0])
@pytest.mark.parametrize('kv_heads', [4, 2])
def test_half_precision_gradients_are_as_good_as_those_of_the_fused_way(dtype, output_weight, kv_heads):
    tensors, masks = draw(kv_heads=kv_heads)
    tensors = [t.detach().to(dtype).float().requires_grad_() for t in tensors]
    exact, expected = gradients(tensors, masks, 'eager', output_weight, is_causal=True)
    errors = {}
    for backend in ('fused', 'lse'):
        half = [t.detach().to(dtype).requires_grad_() for t in tensors]
        intensity, found = gradients(half, masks, backend, output_weight, is_causal=True)
        assert all(gradient.dtype == dtype for gradient in found)
        errors[backend] = [float((a - b).norm()) for a, b in zip(found[:2], expected[:2], strict=True)]
        errors[backend].append(float((intensity - exact).detach().abs().max()))
    for lse, fused, scale in zip(errors['lse'], errors['fused'], [*(g.norm() for g in expected[:2]), 1], strict=True):
        assert lse <= 1.5 * fused + 3e-3 * float(scale)


@pytest.mark.parametrize('loss_scale', [1.0, 65536.0])
def test_gradients_may_come_from_the_intensity_alone(loss_scale):
    """As in the last layer, where no token that counts has a loss of its own; then under a gradient scaler."""
    tensors, masks = draw(torch.float16)
    _, intensity = attention_with_intensity(*tensors, *masks, is_causal=True, backend='lse')
    found = torch.autograd.grad(loss_scale * intensity.sum(), tensors)
    exact = [t.detach().float().requires_grad_() for t in tensors]
    _, intensity = attention_with_intensity(*exact, *masks, is_causal=True, backend='eager')
    expected = torch.autograd.grad(loss_scale * intensity.sum(), exact[:2])
    for a, b in zip(found[:2], expected, strict=True):
        assert (a - b).norm() <= 0.01 * b.norm()
    assert found[2].abs().max() <= 1e-3 * expected[1].abs().max() + 1e-5  # Nothing but what a zero row is given.


def test_gradients_of_gradients_are_refused_and_not_left_out():
    tensors, masks = draw()
    _, intensity = attention_with_intensity(*tensors, *masks, backend='lse')
    with pytest.raises(RuntimeError, match="create_graph=True.*backend='eager'"):
        torch.autograd.grad(intensity.sum(), tensors, create_graph=True)


# --- places and blocks ----------------------------------------------------------------------------------------------


def test_places_are_those_of_the_mask_and_padded_to_the_longest_row():
    mask = torch.tensor([[False, True, False, True], [False, False, True, False], [False] * 4])
    places = Places.of(mask)
    assert places.index[0].tolist() == [1, 3] and places.index[1, 0] == 2
    assert places.real.tolist() == [[True, True], [True, False], [False, False]]
    assert torch.equal(torch.zeros_like(mask).scatter(1, places.positions(4), places.real), mask)
    assert Places.of(torch.zeros(2, 5, dtype=torch.bool)).real.tolist() == [[False], [False]]


def test_where_most_positions_count_nothing_is_cut_out():
    mask = torch.arange(8).expand(2, 8) < torch.tensor([[7], [2]])
    places = Places.of(mask)
    assert places.index is None and torch.equal(places.real, mask)
    x = torch.randn(2, 3, 8)
    assert places.take(x) is x and torch.equal(places.positions(8), torch.arange(8).expand(2, 8))
    tensors, (query_mask, key_mask) = draw()
    few, most = key_mask, torch.arange(LENGTH).expand(2, -1) < torch.tensor([[35], [3]])
    assert Places.of(query_mask).index is None and Places.of(few).index is not None and Places.of(most).index is None
    for masks in ((query_mask, few), (few, few), (few, most), (query_mask, most)):
        for options in (dict(is_causal=True), dict(attention_mask=torch.rand(2, 1, LENGTH, LENGTH) > 0.2)):
            torch.testing.assert_close(
                gradients(tensors, masks, 'lse', **options), gradients(tensors, masks, 'eager', **options)
            )


def test_places_that_are_looked_up_before_give_the_same():
    tensors, masks = draw()
    found = gradients(tensors, masks, 'lse', places=tuple(Places.of(mask) for mask in masks))
    torch.testing.assert_close(found, gradients(tensors, masks, 'lse'), rtol=0, atol=0)


@pytest.mark.parametrize('kv_heads', [4, 2])
def test_a_block_in_parts_is_the_block_in_one(monkeypatch, kv_heads):
    tensors, _ = draw(kv_heads=kv_heads, length=64)
    masks = [torch.ones(2, 64, dtype=torch.bool) for _ in range(2)]  # All queries and keys: four parts.
    sizes = []
    blocks = lse_attention._blocks

    def watched(*args):
        for block in blocks(*args):
            sizes.append(block[-1].numel())
            yield block

    monkeypatch.setattr(lse_attention, '_blocks', watched)
    intensity, found = gradients(tensors, masks, 'lse', is_causal=True)
    assert len(sizes) == 8 and max(sizes) == 2 * HEADS * 64 * WIDTH
    torch.testing.assert_close((intensity, found), gradients(tensors, masks, 'eager', is_causal=True))
    torch.testing.assert_close(intensity, torch.ones(2))


# --- what it leaves to others ---------------------------------------------------------------------------------------


def test_dropout_and_masks_with_gradient_go_the_fused_way():
    tensors, masks = draw()
    for options in (dict(dropout=0.5), dict(attention_mask=torch.randn(LENGTH, LENGTH, requires_grad=True))):
        results = []
        for backend in ('lse', 'fused'):
            torch.manual_seed(0)
            results.append(gradients(tensors, masks, backend, **options))
        torch.testing.assert_close(*results, rtol=0, atol=0)


def test_without_a_kernel_that_knows_the_log_sum_exp_it_goes_the_fused_way():
    tensors, masks = draw(kv_heads=2)
    with sdpa_kernel(SDPBackend.MATH):
        assert lse_attention.pick_kernel(*tensors, None, True, 1.0) is None
        found = gradients(tensors, masks, 'lse', is_causal=True)
    torch.testing.assert_close(found, gradients(tensors, masks, 'eager', is_causal=True))


@pytest.mark.parametrize('shape', [(1, 1, LENGTH, LENGTH), (LENGTH, LENGTH), (2, 1, 1, LENGTH), (2, HEADS, LENGTH, 1)])
@pytest.mark.parametrize('kind', ['bool', 'float'])
def test_masks_of_every_shape_that_broadcasts(shape, kind):
    tensors, masks = draw(kv_heads=2)
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    mask = mask > -1 if kind == 'bool' else mask.masked_fill(mask < -1, -1e9)
    found = gradients(tensors, masks, 'lse', attention_mask=mask)
    torch.testing.assert_close(found, gradients(tensors, masks, 'eager', attention_mask=mask))


def test_auto_is_the_way_that_was_measured_as_fastest():
    tensors, masks = draw()
    way = fastest_backend(tensors[0])
    assert way in ('fused', 'lse')
    torch.testing.assert_close(gradients(tensors, masks, 'auto'), gradients(tensors, masks, way), rtol=0, atol=0)
    found = interaction_intensity(*tensors[:2], *masks, backend='auto')
    torch.testing.assert_close(found, interaction_intensity(*tensors[:2], *masks, backend=way), rtol=0, atol=0)


# --- around it ------------------------------------------------------------------------------------------------------


def test_it_compiles_in_one_graph_also_at_another_length(monkeypatch):
    places, kernels = {}, []
    pick = lse_attention.pick_kernel
    monkeypatch.setattr(interaction, 'pick_kernel', lambda *args: kernels.append(pick(*args)) or kernels[-1])

    def loss(query, key, value, mask):
        output, intensity = attention_with_intensity(
            *(query * 2, key, value),
            *masks,
            is_causal=mask is None,
            attention_mask=mask,
            backend='lse',
            places=places[0],
        )
        return output.square().mean() + intensity.sum()

    compiled = torch.compile(loss, backend='aot_eager', fullgraph=True)
    for length in (40, 24):
        tensors, masks = draw(kv_heads=2, length=length)
        places[0] = tuple(Places.of(mask) for mask in masks)
        for mask in (None, torch.ones(length, length, dtype=torch.bool).tril()):
            results = [torch.autograd.grad(function(*tensors, mask), tensors) for function in (compiled, loss)]
            torch.testing.assert_close(*results)
    assert set(kernels) == {lse_attention.FLASH}


def test_a_layer_that_is_computed_again_gives_the_same_gradients():
    tensors, masks = draw(kv_heads=2)

    def layer(*tensors):
        return attention_with_intensity(*tensors, *masks, is_causal=True, backend='lse')

    results = []
    for again in (False, True):
        found = torch.utils.checkpoint.checkpoint(layer, *tensors, use_reentrant=False) if again else layer(*tensors)
        results.append(torch.autograd.grad(found[0].square().mean() + found[1].sum(), tensors))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_queries_as_layers_lay_them_out_give_the_same():
    tensors, masks = draw(kv_heads=2)
    laid_out = [t.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in tensors]
    assert not laid_out[0].is_contiguous()
    torch.testing.assert_close(gradients(laid_out, masks, 'lse'), gradients(tensors, masks, 'lse'))
    output, _ = attention_with_intensity(*laid_out, *masks, backend='lse')
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*laid_out, enable_gqa=True))
