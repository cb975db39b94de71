"""GuidedMixup's share of saliency and its greedy cycle, on maps made by hand."""

import pytest
import torch

from mergemix_mm.functional import greedy_cycle, saliency_share


def test_the_share_of_a_pixel_is_that_of_its_normalised_saliency():
    saliency = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 2.0, 2.0, 0.0]])
    share = saliency_share(saliency, torch.tensor([1, 0]))
    expected = [0.75 / 0.75, 0.25 / 0.75, 0.0, 0.5]
    torch.testing.assert_close(share, torch.tensor([expected, [1 - x for x in expected]]))


def test_images_without_saliency_are_blended_evenly():
    assert saliency_share(torch.zeros(2, 5), torch.tensor([1, 0])).eq(0.5).all()


def test_the_cycle_starts_with_the_farthest_pair_and_goes_on_to_the_farthest_unvisited_map():
    # Points on a line, as maps whose two values sum to 1: 0 and 3 are the farthest; from 3 the farthest left is 2.
    first = torch.tensor([0.0, 0.6, 0.3, 1.0])
    assert greedy_cycle(torch.stack([first, 1 - first], dim=1)).tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize('size', [2, 3, 8])
def test_the_cycle_visits_every_image_once(size):
    maps = torch.rand(size, 16, generator=torch.Generator().manual_seed(size))
    for saliency in (maps, torch.ones(size, 16)):  # Equal maps leave no choice by distance.
        partner = greedy_cycle(saliency)
        visited = [0]
        for _ in range(size - 1):
            visited.append(int(partner[visited[-1]]))
        assert sorted(visited) == list(range(size)) and partner[visited[-1]] == 0


def test_one_image_has_no_partner():
    with pytest.raises(ValueError, match='at least 2 images'):
        greedy_cycle(torch.rand(1, 4))
