"""Masks that need no network."""

import pytest
import torch

from mergemix_mm.functional import box_mask, cell_mask, random_centers


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ('share', 'center', 'rows', 'columns'),
    [
        (0.75, (4, 8), (2, 6), (4, 12)),  # Half of each side: 4 x 8 of 8 x 16.
        (0.75, (0, 15), (0, 2), (11, 16)),  # Clipped at a corner.
        (0.0, (4, 8), (0, 8), (0, 16)),
        (1.0, (4, 8), (0, 0), (0, 0)),
        (0.9, (4, 8), (3, 5), (6, 11)),  # floor(8 * 0.316) = 2, floor(16 * 0.316) = 5.
    ],
)
def test_a_box_of_area_one_minus_lambda_is_the_partners(share, center, rows, columns):
    mask = box_mask(torch.tensor([share], dtype=torch.float64), torch.tensor([center]), (8, 16))
    expected = torch.ones(1, 8, 16, dtype=torch.bool)
    expected[:, rows[0] : rows[1], columns[0] : columns[1]] = False
    assert torch.equal(mask, expected)


def test_centers_are_uniform_over_all_pixels_and_a_seed_repeats_them():
    centers = random_centers(4000, (2, 5), seeded())
    assert torch.equal(centers, random_centers(4000, (2, 5), seeded()))
    counts = torch.bincount(centers[:, 0] * 5 + centers[:, 1], minlength=10)
    assert counts.min() > 320 and counts.max() < 480


def test_ceil_of_lambda_of_the_cells_are_the_images_own_and_each_image_has_its_own_cells():
    share = torch.full((200,), 0.26, dtype=torch.float64)
    mask = cell_mask(share, (3, 4), 2, seeded())
    assert torch.equal(mask, cell_mask(share, (3, 4), 2, seeded()))
    cells = mask[:, ::2, ::2]  # 2 x 2 cells, of which the lower ones are cut.
    assert torch.equal(cells.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :3], mask)
    assert (cells.sum((1, 2)) == 2).all()
    assert cells.float().mean(0).sub(0.5).abs().max() < 0.12
    assert cell_mask(torch.tensor([0.0, 1e-12, 0.25, 1.0]).double(), (2, 2), 1).sum((1, 2)).tolist() == [0, 1, 1, 4]
