"""Labels from the attention of the mixed image."""

import pytest
import torch

from mergemix_mm.functional import (
    attention_ratio,
    mixed_attention_ratio,
    nearest_mask,
    progressive_ratio,
    region_means,
    visible_scores,
)


def test_a_mask_of_pixels_is_read_at_the_centre_of_each_patch():
    pixels = torch.ones(1, 4, 8, dtype=torch.bool)
    pixels[:, :, 3:] = False  # Column 2 is the centre of the first patch, column 6 of the second.
    assert nearest_mask(pixels.flatten(1), (4, 8), (2, 2)).tolist() == [[True, False, True, False]]
    pixels[:, :, 2] = False
    assert nearest_mask(pixels.flatten(1), (4, 8), (2, 2)).tolist() == [[False] * 4]
    soft = torch.tensor([[0.1, 0.4]])
    assert nearest_mask(soft, (1, 2), (1, 2)).tolist() == soft.tolist()
    assert nearest_mask(soft, (1, 2), (2, 4))[0].tolist() == pytest.approx([0.1, 0.1, 0.4, 0.4] * 2)


def test_the_ratio_is_the_mixed_images_attention_on_its_own_patches():
    attention = torch.tensor([[0.1, 0.2, 0.3, 0.2], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False, False], [False, True, True, False], [True, True, True, False]])
    # 0.3 of 0.8, which the class token leaves to the patches; half; without attention, the area.
    assert mixed_attention_ratio(attention, mask).tolist() == pytest.approx([0.375, 0.5, 0.75])


def test_moved_partners_count_where_they_are_shown():
    saliency, mask = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[True, False], [True, False]])
    partner = torch.tensor([1, 0])
    moved = torch.tensor([[0.1, 0.9], [0.5, 0.5]])
    assert attention_ratio(saliency, partner, mask).tolist() == pytest.approx([0.5 / 0.6, 0.9 / 1.4])
    assert attention_ratio(saliency, partner, mask, moved).tolist() == pytest.approx([0.5 / 1.4, 0.9 / 1.4])


def test_attention_is_trusted_as_far_as_the_area_label_is_predicted():
    labels = torch.tensor([[0.75, 0.25, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    logits = torch.stack([labels[0].clamp(min=1e-12).log(), torch.tensor([-99.0, 0, 0]), torch.zeros(3)])
    ratio, progress = progressive_ratio(torch.full((3,), 0.75), torch.tensor([0.2, 0.4, 0.6]), labels, logits)
    third = (2 / 3) ** 0.5  # The cosine of (1, 1, 0) and (1, 1, 1).
    assert progress.tolist() == pytest.approx([1.0, 0.0, third])
    assert ratio.tolist() == pytest.approx([0.2, 0.75, third * 0.6 + (1 - third) * 0.75])


def test_visible_scores_by_hand_do_not_sum_to_one():
    saliency = torch.tensor([[6.0, 2.0, 1.0, 1.0], [0.0, 0.0, 1.0, 3.0]])
    mask = torch.tensor([[True, True, False, False], [True, True, False, False]])
    own, other = visible_scores(saliency, torch.tensor([1, 0]), mask)
    assert own.tolist() == pytest.approx([0.8, 0.0])
    assert other.tolist() == pytest.approx([1.0, 0.2])
    soft, _ = visible_scores(saliency, torch.tensor([1, 0]), torch.full((2, 4), 0.25))
    assert soft.tolist() == pytest.approx([0.25, 0.25])


def test_a_map_of_zeros_counts_as_uniform():
    own, other = visible_scores(
        torch.zeros(2, 4), torch.tensor([1, 0]), torch.tensor([[True, False, False, False]] * 2)
    )
    assert own.tolist() == [0.25, 0.25] and other.tolist() == [0.75, 0.75]


def test_region_means_by_hand():
    tokens = torch.tensor([[[1.0], [3.0], [8.0]], [[1.0], [2.0], [3.0]]])
    own, other = region_means(tokens, torch.tensor([[True, True, False], [False, False, False]]))
    assert own.flatten().tolist() == [2.0, 0.0] and other.flatten().tolist() == [8.0, 2.0]
