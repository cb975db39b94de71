"""Localization by saliency, on maps and boxes made by hand."""

import pytest
import torch

from mergemix_mm.evaluation.localization import (
    box_overlap,
    mask_box,
    mass_on_object,
    object_in_top,
    object_share,
    saliency_boxes,
)


@pytest.fixture
def scene():
    """A map of 4 x 5 patches, 8 px each, with a blob of two patches, and a brighter single patch far from it."""
    saliency = torch.zeros(4, 5)
    saliency[1, 1], saliency[1, 2], saliency[3, 4] = 0.6, 0.5, 0.9
    mask = torch.zeros(32, 40, dtype=torch.bool)
    mask[8:16, 12:24] = True  # Half of one patch and all of the next.
    return saliency.reshape(1, -1), mask


def test_mass_counts_each_patch_by_the_share_that_the_object_covers(scene):
    saliency, mask = scene
    share = object_share(mask[None], (4, 5))
    assert share[0, 6] == 0.5 and share[0, 7] == 1 and share.sum() == 1.5
    assert mass_on_object(saliency, share).item() == pytest.approx((0.6 / 2 + 0.5) / 2.0)
    assert mass_on_object(torch.ones(1, 20), share).item() == pytest.approx(float(mask.float().mean()))


def test_the_top_patches_are_counted_by_the_object_that_they_hold(scene):
    saliency, mask = scene
    share = object_share(mask[None], (4, 5))
    assert object_in_top(saliency, share, 0.1).item() == pytest.approx(0.5 / 1.5)  # 2 of 20: the far one, and (1, 1).
    assert object_in_top(saliency, share, 0.15).item() == 1
    assert object_in_top(saliency, torch.zeros(1, 20)).isnan().all()


def test_the_box_encloses_the_largest_part_above_the_threshold(scene):
    saliency, _ = scene
    low, high = saliency_boxes(saliency, (4, 5), (4, 5), [0.1, 0.8])[0]
    assert low.tolist() == [1, 1, 3, 2]  # Two patches beat the brighter one...
    assert high.tolist() == [4, 3, 5, 4]  # ... which alone is above the higher threshold.
    resized = saliency_boxes(saliency, (4, 5), (32, 40), [0.3])[0, 0]
    assert box_overlap(resized, torch.tensor([[8.0, 8, 24, 16]])) > 0.75


def test_a_map_of_one_value_is_a_box_around_the_image():
    assert saliency_boxes(torch.full((1, 20), 0.3), (4, 5), (32, 40), [0.2, 0.9]).tolist() == [[[0, 0, 40, 32]] * 2]


def test_overlap_is_that_of_the_true_box_that_fits_best(scene):
    _, mask = scene
    box = mask_box(mask)
    assert box.tolist() == [12, 8, 24, 16]
    boxes = torch.tensor([[[12.0, 8, 24, 16], [0, 0, 40, 32]], [[18, 8, 30, 16], [30, 20, 40, 32]]])
    expected = torch.tensor([[1, 96 / 1280], [48 / 144, 0]])
    torch.testing.assert_close(box_overlap(boxes, box[None]), expected)
    two = torch.stack([box, torch.tensor([30.0, 20, 40, 32])])
    assert box_overlap(boxes, two)[1, 1] == 1
