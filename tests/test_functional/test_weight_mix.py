"""Tests of the mix of two state dicts: values, rounding, and that all mismatches are named at once."""

import re

import pytest
import torch
from torch import nn

from mergemix_mm.functional import mix_tensors, mix_weights
from mergemix_mm.functional.weight_mix import CHUNK, name_filter


def pair(dtype, *shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize('beta', [0.3, 0.5, 0.9])
def test_it_is_the_weighted_sum(beta):
    real, synthetic = pair(torch.float64, 3, CHUNK // 2)  # More than one chunk, and not a multiple of one.
    torch.testing.assert_close(mix_tensors(real, synthetic, beta), beta * real + (1 - beta) * synthetic)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32_and_rounded_once(dtype):
    real, synthetic = pair(dtype, 5000)
    mixed = mix_tensors(real, synthetic, 0.3)
    exact = 0.3 * real.double() + 0.7 * synthetic.double()
    assert mixed.dtype == dtype
    rounding = (exact.to(dtype).double() - exact).abs() + 1e-6  # float32 turns ties.
    assert bool(((mixed.double() - exact).abs() <= rounding).all())
    assert not bool(((0.3 * real + 0.7 * synthetic - exact).abs() <= rounding).all())  # Rounded three times.


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_beta_one_is_real_and_beta_zero_synthetic_bit_by_bit(dtype):
    real, synthetic = pair(dtype, 7)
    real[0], real[1], synthetic[2], synthetic[3] = -0.0, float('nan'), -0.0, float('inf')
    assert bits(mix_tensors(real, synthetic, 1)) == bits(real)
    assert bits(mix_tensors(real, synthetic, 0)) == bits(synthetic)


def test_what_is_equal_in_both_stays():
    real, _ = pair(torch.float32, 1000)
    assert torch.equal(mix_tensors(real, real.clone(), 1 / 3), real)


def test_strides_do_not_matter():
    real, synthetic = pair(torch.float32, 4, 6)
    assert torch.equal(mix_tensors(real.t(), synthetic.t(), 0.25), mix_tensors(real, synthetic, 0.25).t())
    last = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert torch.equal(mix_tensors(last, last.contiguous(), 0.25), last)


@pytest.mark.parametrize('other', [torch.ones(3), torch.ones(2, 1), torch.ones(2, dtype=torch.float64)])
def test_tensors_that_do_not_fit_are_not_broadcast_or_converted(other):
    with pytest.raises(ValueError, match=r'cannot mix float32 \[2\] with float'):
        mix_tensors(torch.ones(2), other, 0.5)


def test_whole_state_dicts_are_mixed_into_new_tensors():
    models = [nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    real, synthetic = (model.state_dict() for model in models)
    before = {name: tensor.clone() for name, tensor in real.items()}
    mixed = mix_weights(real, synthetic, 0.5)
    assert list(mixed) == list(real)
    torch.testing.assert_close(mixed['0.weight'], (real['0.weight'] + synthetic['0.weight']) / 2)
    assert mixed['1.num_batches_tracked'].dtype == torch.int64
    assert mixed._metadata == real._metadata
    for tensor in mixed.values():
        tensor.fill_(9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in real.items())
    models[0].load_state_dict(mixed)


def test_parameters_are_mixed_without_a_graph():
    real, synthetic = (dict(a=nn.Parameter(torch.full((2,), value))) for value in (1.0, 3.0))
    mixed = mix_weights(real, synthetic, 0.75)
    assert mixed['a'].tolist() == [1.5, 1.5] and not mixed['a'].requires_grad


@pytest.mark.parametrize('include', ['layers', re.compile('layers').search, lambda name: name == 'layers.0'])
def test_names_that_are_not_included_are_those_of_real_whatever_the_other_holds(include):
    real = {'layers.0': torch.zeros(2), 'head': torch.zeros(3), 'count': torch.tensor(1)}
    synthetic = {'layers.0': torch.ones(2), 'head': torch.ones(4), 'extra': torch.ones(1)}
    mixed = mix_weights(real, synthetic, 0.25, include)
    assert mixed['layers.0'].tolist() == [0.75, 0.75]
    assert mixed['head'].tolist() == [0, 0, 0] and mixed['count'] == 1 and list(mixed) == list(real)
    assert mixed['head'].data_ptr() != real['head'].data_ptr()


def test_include_and_exclude_are_searched_in_the_name():
    included = name_filter('language_model', r'norm\.weight$')
    names = ('x.language_model.fc.weight', 'language_model.norm.weight', 'vision.fc.weight')
    assert [included(name) for name in names] == [True, False, False]


def test_every_mismatch_is_named_in_one_error():
    real = dict(
        same=torch.ones(2), shape=torch.ones(2, 3), dtype=torch.ones(2), steps=torch.tensor([1, 2]), mine=torch.ones(1)
    )
    synthetic = dict(
        same=torch.ones(2),
        shape=torch.ones(3, 2),
        dtype=torch.ones(2).half(),
        steps=torch.tensor([1, 3]),
        yours=torch.ones(1),
    )
    with pytest.raises(ValueError) as caught:
        mix_weights(real, synthetic, 0.5)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0] == 'the weights cannot be mixed (5 problems):'
    assert set(lines[1:6]) == {
        'yours: only in synthetic',
        'mine: only in real',
        'shape: float32 [2, 3] in real, float32 [3, 2] in synthetic',
        'dtype: float32 [2] in real, float16 [2] in synthetic',
        'steps: int64 [2], which is not mixed and must be equal, differs',
    }
    assert '`include`' in lines[6]


@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.float8_e4m3fn, torch.complex64])
def test_values_that_are_no_floating_numbers_have_to_agree(dtype):
    real = dict(w=torch.ones(1), codes=torch.tensor([0, 1, 1]).to(dtype))
    mixed = mix_weights(real, dict(w=torch.zeros(1), codes=real['codes'].clone()), 0.5)
    assert mixed['w'] == 0.5 and bits(mixed['codes']) == bits(real['codes'])
    with pytest.raises(ValueError, match=r'codes: \w+ \[3\], which is not mixed'):
        mix_weights(real, dict(w=torch.zeros(1), codes=torch.tensor([0, 1, 0]).to(dtype)), 0.5)


@pytest.mark.parametrize('beta', [-0.1, 1.5, float('nan')])
def test_extrapolation_is_refused(beta):
    for mix, one in ((mix_tensors, torch.ones(1)), (mix_weights, dict(a=torch.ones(1)))):
        with pytest.raises(ValueError, match=r'beta=.* must be in \[0, 1\]'):
            mix(one, one, beta)


def test_a_filter_without_effect_is_refused():
    weights = {'layers.0': torch.ones(1)}
    with pytest.raises(ValueError, match=r'none of the 1 names is to be mixed \(the first: layers.0\)'):
        mix_weights(weights, weights, 0.5, 'layer_0')
    with pytest.raises(ValueError, match=r"include='\(' is not a regular expression"):
        mix_weights(weights, weights, 0.5, '(')
