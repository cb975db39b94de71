"""Random blocks, the visible part of maps, and the mean tokens of regions."""

import pytest
import torch

from mergemix_mm.functional import random_blocks, region_means, visible_scores


def test_blocks_never_cover_more_than_asked_and_nearly_always_as_much():
    generator = torch.Generator().manual_seed(0)
    covered = [int(random_blocks((14, 14), 112, generator).sum()) for _ in range(100)]
    assert max(covered) <= 112 and sum(covered) / 100 > 110
    assert random_blocks((14, 14), 0, generator).sum() == 0
    assert len({tuple(random_blocks((4, 6), 10, generator).tolist()) for _ in range(20)}) > 10


def test_blocks_are_seeded():
    first, second = (random_blocks((14, 14), 112, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


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
