"""Maps of several encoders on one grid, side by side in the channels."""

import pytest
import torch
import torch.nn.functional as F

from mergemix_mm.functional import mix_embeddings, resample_grid


def random_map(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_channels_stand_in_the_order_of_the_maps():
    maps = [random_map(2, 5, 4, 4), random_map(2, 3, 4, 4, seed=1)]
    mixed = mix_embeddings(maps, 4)
    assert mixed.shape == (2, 16, 8)
    for row in range(4):
        for column in range(4):
            token = torch.cat([maps[0][:, :, row, column], maps[1][:, :, row, column]], dim=1)
            assert torch.equal(mixed[:, 4 * row + column], token)


def test_a_coarser_map_is_upsampled_bilinearly():
    coarse = random_map(2, 3, 8, 8)
    mixed = mix_embeddings([coarse], 16)
    expected = F.interpolate(coarse, size=(16, 16), mode='bilinear', align_corners=False)
    torch.testing.assert_close(mixed, expected.flatten(2).transpose(1, 2))


def test_a_finer_map_is_averaged_not_picked_from():
    stripes = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 1, 16, 16)
    assert F.interpolate(stripes, size=(4, 4)).unique().numel() == 1
    torch.testing.assert_close(resample_grid(stripes, 4)[..., 1:3], torch.full((1, 1, 4, 2), 0.5))


def test_a_grid_need_not_be_square():
    maps = [random_map(1, 2, 2, 6), random_map(1, 2, 4, 3)]
    assert mix_embeddings(maps, (2, 6)).shape == (1, 12, 4)
    assert torch.equal(mix_embeddings(maps, (2, 6))[0, 7, :2], maps[0][0, :, 1, 1])


def test_a_map_of_the_grid_is_not_touched():
    token_map = random_map(1, 2, 4, 4)
    assert resample_grid(token_map, 4) is token_map


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_resampled_in_float32(dtype):
    token_map = random_map(1, 2, 6, 6).to(dtype)
    assert torch.equal(resample_grid(token_map, 4), resample_grid(token_map.float(), 4).to(dtype))


@pytest.mark.parametrize(
    ('maps', 'grid', 'message'),
    [
        ([], 4, 'token_maps is empty'),
        ([random_map(2, 3, 4, 4), random_map(1, 3, 4, 4)], 4, r'\[2, 1\] images'),
        ([random_map(2, 3, 4)], 4, r'shape \[2, 3, 4\]'),
        ([random_map(2, 3, 4, 4)], 0, 'grid=0'),
        ([random_map(2, 3, 4, 4)], (4, 4, 4), r'grid=\(4, 4, 4\)'),
        ([random_map(2, 3, 4, 4)], (4, 2.5), r'grid=\(4, 2.5\)'),
    ],
)
def test_what_cannot_be_mixed_is_an_error(maps, grid, message):
    with pytest.raises(ValueError, match=message):
        mix_embeddings(maps, grid)


def test_cells_that_reach_over_the_border_are_where_their_size_says():
    # Five places of a ramp, cells of two: around 1, 3 and 5, where stretching would give 0.83, 2.5 and 4.17.
    ramp = (torch.arange(5.0) + 0.5).expand(1, 1, 4, 5)
    found = resample_grid(ramp, (2, 3), (2.0, 2.0))
    # Triangles of two places to either side: weights 1, 3, 3, 1, of which those outside count for nothing.
    expected = [(3 * 0.5 + 3 * 1.5 + 2.5) / 7, 3.0, (3 * 4.5 + 3.5) / 4]
    torch.testing.assert_close(found[0, 0, 0], torch.tensor(expected))
    assert resample_grid(ramp, (2, 3), None)[0, 0, 0, 1] == pytest.approx(2.5, abs=1e-5)


def test_cells_that_cover_the_map_are_those_of_resizing():
    token_map = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    for grid in ((8, 12), (4, 6), (16, 24), (2, 24)):
        assert torch.equal(resample_grid(token_map, grid, (8 / grid[0], 12 / grid[1])), resample_grid(token_map, grid))


def test_fine_cells_beyond_a_map_repeat_its_border():
    ramp = torch.arange(3.0).expand(1, 1, 3, 3)
    found = resample_grid(ramp, (3, 16), (1.0, 0.25))
    assert torch.equal(found[0, 0, 0, -6:], torch.full((6,), 2.0)) and found.isfinite().all()


def test_cells_are_resampled_in_float32_under_autocast():
    token_map = torch.randn(1, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = resample_grid(token_map, (3, 4), (2.0, 2.0))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(resample_grid(token_map, (3, 4), (2.0, 2.0)), expected)


@pytest.mark.parametrize('grid', [(6, 6), (3, 20), (16, 12), (9, 4), (1, 1)])
def test_a_deterministic_run_resamples_the_same_by_products_that_have_a_deterministic_gradient(grid):
    x = torch.randn(2, 3, 9, 10, requires_grad=True)
    expected = F.interpolate(x, grid, mode='bilinear', antialias=True)
    assert torch.equal(resample_grid(x, grid), expected)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = resample_grid(x, grid)
        assert 'Upsample' in expected.grad_fn.name() and 'Upsample' not in found.grad_fn.name()
        assert torch.equal(resample_grid(x.detach(), grid), expected.detach())  # Nothing to derive.
    finally:
        torch.use_deterministic_algorithms(before)
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad((one * weight).sum(), x)[0] for one in (found, expected)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
