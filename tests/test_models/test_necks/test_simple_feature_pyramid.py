"""SimpleFeaturePyramid: strides, widths, what each level depends on, and refusals."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

import mergemix_mm  # noqa: F401


def build(**kwargs):
    torch.manual_seed(0)
    return MODELS.build(dict(type='SimpleFeaturePyramid', in_channels=16, out_channels=8) | kwargs)


@pytest.mark.parametrize(('num_outs', 'sizes'), [(4, [24, 12, 6, 3]), (6, [24, 12, 6, 3, 2, 1])])
def test_levels_have_a_quarter_half_one_and_twice_the_stride_and_then_halve(num_outs, sizes):
    outs = build(num_outs=num_outs)((torch.randn(2, 16, 6, 12),))
    assert isinstance(outs, tuple)
    assert [tuple(out.shape) for out in outs] == [(2, 8, size, width) for size, width in zip(sizes, widths(num_outs))]


def widths(num_outs):
    return [48, 24, 12, 6, 3, 2][:num_outs]


@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 7), (5, 1), (50, 84), (13, 21), (3, 2)])
def test_levels_have_as_many_cells_as_their_strides_ask_for_at_any_size(height, width):
    # Patches of 16 pixels, levels of stride 4 to 128.
    outs = build(num_outs=6)((torch.randn(1, 16, height, width),))
    strides = (4, 8, 16, 32, 64, 128)
    expected = [tuple(-(-16 * side // stride) for side in (height, width)) for stride in strides]
    assert [tuple(out.shape[-2:]) for out in outs] == expected
    assert all(out.isfinite().all() for out in outs)


def test_the_last_row_of_an_odd_map_reaches_the_level_below():
    neck, x = build(num_outs=4), torch.randn(1, 16, 5, 4)
    changed = x.clone()
    changed[..., 4, :] += 5
    moved = (neck((x,))[3] - neck((changed,))[3]).abs().sum(dim=1)[0] > 1e-6
    assert moved.shape == (3, 2) and moved[2].all()


def test_only_the_last_map_is_used():
    neck, last = build(), torch.randn(1, 16, 4, 4)
    for a, b in zip(neck((torch.randn(1, 5, 9, 9), last)), neck([last]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_levels_beyond_the_fourth_take_every_second_place_of_the_last():
    outs = build(num_outs=6)((torch.randn(1, 16, 16, 16),))
    torch.testing.assert_close(outs[4], outs[3][..., ::2, ::2], rtol=0, atol=0)
    torch.testing.assert_close(outs[5], outs[4][..., ::2, ::2], rtol=0, atol=0)


def test_each_place_is_normalised_over_its_channels():
    for out in build(num_outs=4)((torch.randn(1, 16, 6, 6) * 7 + 3,)):
        torch.testing.assert_close(out.mean(dim=1), torch.zeros_like(out[:, 0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.var(dim=1, unbiased=False), torch.ones_like(out[:, 0]), atol=0.05, rtol=0)


def test_every_level_sees_the_whole_map_in_place():
    # A change in the top left patch reaches the levels' top left corners and no other end.
    neck, x = build(num_outs=4), torch.randn(1, 16, 8, 8)
    changed = x.clone()
    changed[..., 0, 0] += 1
    for out, other in zip(neck((x,)), neck((changed,)), strict=True):
        moved = (out - other).abs().sum(dim=1)[0] > 1e-6
        assert moved[0, 0] and not moved[-1].any() and not moved[:, -1].any()


def test_the_norm_is_a_choice():
    neck = build(norm_cfg=dict(type='GN', num_groups=2))
    assert sum(isinstance(module, torch.nn.GroupNorm) for module in neck.modules()) == 9
    assert not any(isinstance(module, torch.nn.LayerNorm) for module in neck.modules())


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_it_builds_in_every_scope(scope):
    init_default_scope(scope)
    assert sum(isinstance(module, torch.nn.LayerNorm) for module in build().modules()) == 9


def test_gradients_reach_every_parameter():
    neck = build(num_outs=5)
    sum(out.square().sum() * (i + 1) for i, out in enumerate(neck((torch.randn(2, 16, 4, 4),)))).backward()
    # A norm over channels takes the gradient of squares away from what is before it: weights of the last norm remain.
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in neck.parameters())
    assert neck.levels[0][0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(in_channels=18), 'in_channels=18 must be a multiple of 4'),
        (dict(in_channels=[16]), r'in_channels=\[16\] must be a multiple of 4, the channels of the one map'),
        (dict(out_channels=0), 'out_channels=0 must be an integer of at least 1'),
        (dict(num_outs=3), 'num_outs=3 must be at least 4'),
    ],
)
def test_bad_arguments_are_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize('shape', [(2, 16), (2, 8, 4, 4), (2, 17, 16)])
def test_what_is_no_map_of_this_width_is_refused_with_the_keys_to_change(shape):
    with pytest.raises(ValueError, match=r"\[2, .*in_channels=16.*out_type='featmap' in model.backbone.*neck.in_chan"):
        build()((torch.zeros(shape),))
