"""Attention with its interaction intensity on a device: every backend, every kind of mask, every precision."""

import pytest
import torch
from on_device import moved
from torch.nn.attention import SDPBackend, sdpa_kernel

from mergemix_mm.functional import attention_with_intensity, interaction_intensity
from mergemix_mm.functional.lse_attention import pick_kernel

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Relative error of a whole tensor against float64.
ERROR = {torch.float32: 5e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
L = 133


def case(heads=4, width=64, length=L):
    """Query, key, value, the two masks, and weights of the outputs."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, length, width), (2, heads, length, width), (2, heads, length, width), (2, 4, length, width)
    query, key, value, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    places = torch.arange(length).expand(2, length)
    return query, key, value, places >= 70, places < 60, weight


def mask_of(kind):
    causal = torch.ones(L, L, dtype=torch.bool).tril()
    if kind == 'none':
        return {}
    if kind == 'causal':
        return dict(is_causal=True)
    padded = causal & (torch.arange(L) >= torch.tensor([0, 9])[:, None])[:, None, None]
    if kind == 'padded':  # On the left: the padding itself sees nothing.
        return dict(attention_mask=padded)
    return dict(attention_mask=torch.where(padded, 0.0, torch.finfo(torch.float32).min))


def run(arguments, options, dtype, device):
    """Output, intensity, and the gradients of query, key and value; float64 on the CPU."""
    *tensors, weight = moved(arguments, device, dtype)
    options = moved(options, device, dtype if dtype != torch.float64 else None)
    tensors[:3] = [one.requires_grad_() for one in tensors[:3]]
    output, intensity = attention_with_intensity(*tensors, **options)
    assert output.device.type == device.type and output.dtype == dtype
    total = (output * weight).float().sum() + 100 * intensity.float().sum()
    found = [output, intensity, *torch.autograd.grad(total, tensors[:3])]
    return [one.detach().double().cpu() for one in found]


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('backend', ['fused', 'lse', 'eager'])
@pytest.mark.parametrize('mask', ['none', 'causal', 'padded', 'float'])
@pytest.mark.parametrize(('heads', 'width'), [(4, 64), (2, 64), (1, 128), (4, 20)])
def test_output_intensity_and_gradients_are_those_of_float64(heads, width, mask, backend, dtype, device):
    arguments, options = case(heads, width), mask_of(mask)
    expected = run(arguments, dict(options, backend='eager'), torch.float64, torch.device('cpu'))
    found = run(arguments, dict(options, backend=backend), dtype, device)
    for name, got, want in zip(('output', 'intensity', 'query', 'key', 'value'), found, expected, strict=True):
        assert got.isfinite().all(), name
        error = float((got - want).norm() / want.norm())
        assert error < ERROR[dtype] * (3 if name in ('query', 'key') else 1), (name, error)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('backend', ['fused', 'lse', 'eager'])
@pytest.mark.parametrize('kind', ['bool', 'float', 'minimum'])
def test_queries_that_see_nothing_have_output_and_gradients_of_zero(kind, backend, dtype, device):
    arguments = case()
    seen = torch.ones(2, 1, L, L, dtype=torch.bool)
    seen[0], seen[1, :, :80] = False, False
    block = -torch.inf if kind == 'float' else torch.finfo(torch.float32).min
    mask = seen if kind == 'bool' else torch.where(seen, 0.0, block)
    found = run(arguments, dict(attention_mask=mask, backend=backend), dtype, device)
    output, intensity, query, key, _ = found
    assert all(one.isfinite().all() for one in found)
    assert not output[0].any() and intensity[0] == 0 and not output[1, :, :80].any() and output[1, :, 80:].any()
    assert not query[0].any() and not key[0].any() and query[1, :, 80:].any()


@pytest.mark.parametrize('backend', ['fused', 'lse', 'eager'])
def test_dropout_drops_and_its_expectation_is_the_intensity(backend, device):
    query, key, value, query_mask, key_mask, _ = moved(case(), device, torch.float32)
    options = dict(is_causal=True, backend=backend)
    plain = attention_with_intensity(query, key, value, query_mask, key_mask, **options)[1]
    drawn = [
        attention_with_intensity(query, key, value, query_mask, key_mask, dropout=0.5, **options)[1] for _ in range(40)
    ]
    drawn = torch.stack(drawn)
    assert drawn.std(dim=0).min() > 0
    torch.testing.assert_close(drawn.mean(dim=0), plain, rtol=0.03, atol=0.01)


@pytest.mark.parametrize('dtype', DTYPES)
def test_the_intensity_alone_is_the_same(dtype, device):
    query, key, value, query_mask, key_mask, _ = moved(case(2), device, dtype)
    options = dict(is_causal=True)
    both = attention_with_intensity(query, key, value, query_mask, key_mask, **options)[1]
    alone = interaction_intensity(query, key, query_mask, key_mask, **options)
    assert alone.dtype == torch.float32 and alone.device.type == device.type
    torch.testing.assert_close(alone, both, rtol=ERROR[dtype], atol=ERROR[dtype])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('kernel', ['FLASH_ATTENTION', 'EFFICIENT_ATTENTION', 'CUDNN_ATTENTION'])
@pytest.mark.parametrize(('heads', 'width'), [(4, 64), (4, 96), (4, 128), (2, 64)])
def test_each_kernel_gives_its_log_sum_exp_and_takes_the_moved_output(heads, width, kernel, dtype, device):
    arguments = case(heads, width)
    options, choice = dict(is_causal=True, backend='lse'), SDPBackend.__members__[kernel]
    expected = run(arguments, dict(options, backend='eager'), torch.float64, torch.device('cpu'))
    with sdpa_kernel(choice):
        query, key, value = moved(arguments[:3], device, dtype)
        try:
            picked = pick_kernel(query, key, value, None, True, width**-0.5)
        except RuntimeError:  # Torch's word for: none.
            picked = None
        if picked is None:
            pytest.skip(f'torch has no {kernel} for this here')
        assert picked == choice.value
        found = run(arguments, options, dtype, device)
    for name, got, want in zip(('output', 'intensity', 'query', 'key', 'value'), found, expected, strict=True):
        error = float((got - want).norm() / want.norm())
        assert error < ERROR[dtype] * (3 if name in ('query', 'key') else 1), (name, error)
