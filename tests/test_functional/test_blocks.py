"""Blocks of patches: found by their saliency, drawn in size, and moved."""

import pytest
import torch

from mergemix_mm.functional import block_mask, draw_side, extreme_blocks, replace_patches, shift_patches


def test_the_least_and_the_most_salient_block_are_found_and_the_first_among_equals():
    saliency = torch.zeros(2, 3, 4)
    saliency[0, 1:, 2:] = 1.0  # The lower right block; the upper left is the first one without any.
    saliency[1] = torch.tensor([[9.0, 0, 1, 1], [0, 0, 1, 1], [3, 3, 0, 0]])
    least, most = extreme_blocks(saliency.flatten(1), (3, 4), 2)
    # Sums of the second image: 9, 2, 4 in the first row of blocks, and 6, 4, 2 in the second.
    assert least.tolist() == [[0, 0], [0, 1]]
    assert most.tolist() == [[1, 2], [0, 0]]


def test_the_mask_of_a_block_starts_at_its_corner():
    mask = block_mask(torch.tensor([[0, 1], [1, 2]]), 2, (3, 4))
    assert mask[0].view(3, 4).long().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert mask[1].view(3, 4).long().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_a_moved_block_lies_where_it_was_to_be_put():
    torch.manual_seed(0)
    images, grid = torch.randn(2, 3, 6, 8), (3, 4)  # Patches of 2 x 2 pixels.
    source, target = torch.tensor([[1, 2], [0, 0]]), torch.tensor([[0, 0], [1, 1]])
    partners = images.flip(0)
    mixed = replace_patches(images, shift_patches(partners, target - source, grid), ~block_mask(target, 2, grid), grid)
    assert torch.equal(mixed[0, :, :4, :4], partners[0, :, 2:, 4:])
    assert torch.equal(mixed[1, :, 2:, 2:6], partners[1, :, :4, :4])
    assert torch.equal(mixed[0, :, 4:], images[0, :, 4:])
    maps = torch.arange(12.0).expand(2, -1)
    assert (
        shift_patches(maps, target - source, grid)[0].tolist()
        == maps[0].view(3, 4).roll((-1, -2), (0, 1)).flatten().tolist()
    )


def test_sides_are_drawn_evenly_between_the_rounded_shares():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_side((14, 16), 0.25, 0.75, generator) for _ in range(400)]
    assert sorted(set(drawn)) == list(range(3, 11))
    assert min(drawn.count(side) for side in range(3, 11)) > 25
    assert draw_side((4, 4), 0.1, 0.1) == 1
    with pytest.raises(ValueError, match=r'low=0.5 and high=0.25 must be 0 < low <= high <= 1'):
        draw_side((4, 4), 0.5, 0.25)
