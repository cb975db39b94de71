"""Masks, ratios, partners and mixed pixels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergemix_mm.functional import (
    area_ratio,
    attention_ratio,
    derangement,
    gaussian_ratio,
    mix_images,
    mix_labels,
    sample_lambda,
    topk_mask,
)


@given(st.integers(2, 40), st.integers(0, 2**16))
def test_no_image_is_its_own_partner(batch_size, seed):
    partner = derangement(batch_size, torch.Generator().manual_seed(seed))
    assert sorted(partner.tolist()) == list(range(batch_size))
    assert (partner != torch.arange(batch_size)).all()


def test_derangement_is_drawn_anew_and_repeats_with_its_generator():
    draws = {tuple(derangement(4, torch.Generator().manual_seed(seed)).tolist()) for seed in range(50)}
    assert len(draws) == 6, 'all permutations that are one cycle of four'
    assert torch.equal(
        derangement(9, torch.Generator().manual_seed(3)), derangement(9, torch.Generator().manual_seed(3))
    )


def test_derangement_of_one_is_an_error():
    with pytest.raises(ValueError, match='batch_size=1'):
        derangement(1)


@given(st.integers(1, 50), st.floats(0, 1), st.integers(1, 3))
def test_exactly_floor_of_ratio_times_patches_are_kept(num_patches, ratio, batch_size):
    mask = topk_mask(torch.rand(batch_size, num_patches), ratio)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [math.floor(ratio * num_patches)] * batch_size


def test_each_image_may_have_a_ratio_of_its_own():
    ratio = torch.tensor([0.0, 0.7, 1.0], dtype=torch.float64)
    assert topk_mask(torch.rand(3, 10), ratio).sum(1).tolist() == [0, 7, 10]


def test_the_most_salient_patches_are_kept_and_ties_go_to_the_first():
    saliency = torch.tensor([[0.1, 0.9, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]])
    assert topk_mask(saliency, 0.5).tolist() == [[False, True, True, False], [True, True, False, False]]


@pytest.mark.parametrize('ratio', [-0.1, 1.1, torch.tensor([0.5, 2.0])])
def test_ratio_outside_zero_to_one_is_an_error(ratio):
    with pytest.raises(ValueError, match='must be in'):
        topk_mask(torch.rand(2, 4), ratio)


@pytest.mark.parametrize(('size', 'grid'), [((8, 8), (4, 4)), ((6, 12), (2, 3)), ((9, 4), (3, 1))])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_mixed_image_equals_both_sources_pixel_for_pixel(size, grid, memory_format):
    torch.manual_seed(0)
    images = torch.randn(3, 3, *size).contiguous(memory_format=memory_format)
    before, partner = images.clone(), torch.tensor([1, 2, 0])
    mask = torch.rand(3, grid[0] * grid[1]) < 0.5

    mixed = mix_images(images, partner, mask, grid)

    high, wide = size[0] // grid[0], size[1] // grid[1]
    for b in range(3):
        for y in range(size[0]):
            for x in range(size[1]):
                own = mask[b, (y // high) * grid[1] + x // wide]
                source = images[b] if own else images[partner[b]]
                assert torch.equal(mixed[b, :, y, x], source[:, y, x])
    assert torch.equal(images, before)
    assert mixed.data_ptr() != images.data_ptr()


def test_images_that_do_not_fit_the_grid_are_an_error_with_a_remedy():
    images, partner = torch.randn(2, 3, 10, 8), torch.tensor([1, 0])
    with pytest.raises(ValueError, match=r'10 x 8 pixels .* patch_grid=\(4, 4\): resize or crop'):
        mix_images(images, partner, torch.ones(2, 16, dtype=torch.bool), (4, 4))
    with pytest.raises(ValueError, match='mask has 9 patches'):
        mix_images(images, partner, torch.ones(2, 9, dtype=torch.bool), (2, 4))


def test_labels_are_mixed_by_hand_and_sum_to_one():
    scores = torch.eye(3)
    mixed = mix_labels(scores, torch.tensor([1, 2, 0]), torch.tensor([0.25, 1.0, 0.5]))
    assert mixed.tolist() == [[0.25, 0.75, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    assert mixed.sum(1).tolist() == [1, 1, 1]


def test_area_ratio_is_the_share_of_patches():
    assert area_ratio(torch.tensor([[True, False, False, True], [False] * 4])).tolist() == [0.5, 0.0]


def test_attention_ratio_by_hand():
    saliency = torch.tensor([[0.6, 0.4], [0.1, 0.9]])
    mask = torch.tensor([[True, False], [True, False]])
    ratio = attention_ratio(saliency, torch.tensor([1, 0]), mask)
    torch.testing.assert_close(ratio, torch.tensor([0.6 / (0.6 + 0.9), 0.1 / (0.1 + 0.4)]))


def test_attention_ratio_of_uniform_attention_and_of_none_is_the_area():
    mask = torch.tensor([[True, True, True, False]] * 2)
    for saliency in (torch.full((2, 4), 0.25, dtype=torch.bfloat16), torch.zeros(2, 4)):
        assert attention_ratio(saliency, torch.tensor([1, 0]), mask).tolist() == [0.75, 0.75]


def test_gaussian_ratio_spans_the_batch_and_does_not_see_the_mask():
    masks = torch.zeros(6, 8, dtype=torch.bool), torch.ones(6, 8, dtype=torch.bool)
    drawn = [gaussian_ratio(4, mask, torch.Generator().manual_seed(0)) for mask in masks]
    assert torch.equal(*drawn)
    assert (drawn[0].min(), drawn[0].max()) == (0, 1)
    # Min-max removes the mean, and with it the number of merged tokens.
    torch.testing.assert_close(drawn[0], gaussian_ratio(7, masks[0], torch.Generator().manual_seed(0)))


def test_gaussian_ratio_of_small_batches_is_the_area():
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    assert gaussian_ratio(1, mask).tolist() == [0.5, 1.0, 0.0]


def test_lambda_follows_the_beta_distribution():
    draws = sample_lambda(2.0, 4000, torch.Generator().manual_seed(0))
    assert draws.dtype == torch.float64
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(draws.var()) == pytest.approx(1 / 20, abs=0.005)
    assert torch.equal(draws, sample_lambda(2.0, 4000, torch.Generator().manual_seed(0)))
