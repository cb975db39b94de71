"""Masks that need no network."""

import math

import pytest
import torch

from mergemix_mm.functional import (
    box_mask,
    cell_mask,
    cells_to_pixels,
    fourier_mask,
    grid_mask,
    hole_mask,
    masks,
    random_blocks,
    random_centers,
    spot_mask,
)


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


def test_a_soft_spot_is_the_partners_in_its_centre_and_half_own_at_the_half_width():
    sigma = 4.0
    mask = spot_mask(torch.tensor([[5, 7]]), torch.tensor([sigma]), (16, 20))[0]
    assert mask.shape == (16, 20) and mask[5, 7] == 0
    for row, column in ((5, 11), (9, 7), (2, 3), (15, 19)):
        squared = (row - 5) ** 2 + (column - 7) ** 2
        assert mask[row, column].item() == pytest.approx(1 - math.exp(-squared / (2 * sigma**2)), abs=1e-6)
    assert mask.min() >= 0 and mask.max() <= 1


def test_each_cell_is_own_with_probability_lambda():
    share = torch.tensor([0.2, 0.9])
    cells = grid_mask(share, 100, seeded())
    assert torch.allclose(cells.float().mean((1, 2)), share, atol=0.02)
    assert torch.equal(cells, grid_mask(share, 100, seeded()))
    assert not grid_mask(torch.zeros(1), 9, seeded()).any() and grid_mask(torch.ones(1), 9, seeded()).all()


def test_cells_cover_all_pixels_also_where_the_sides_are_not_their_multiples():
    cells = torch.tensor([[[True, False], [False, True]]])
    pixels = cells_to_pixels(cells, (4, 5))[0]
    assert pixels.int().tolist() == [[1, 1, 1, 0, 0]] * 2 + [[0, 0, 0, 1, 1]] * 2


def test_holes_repeat_inside_the_region_and_have_the_partners_share_of_their_cell():
    numbers, corner, region = torch.tensor([2]), torch.tensor([[1, 2]]), torch.tensor([[6, 8]])
    mask = hole_mask(torch.tensor([0.75], dtype=torch.float64), numbers, corner, region, (8, 12))[0]
    expected = torch.ones(8, 12, dtype=torch.bool)
    for row in (1, 5):  # Cells of 4 pixels, holes of 2; the second row of cells is cut off after 2 pixels.
        for column in (2, 6):
            expected[row : row + 2, column : column + 2] = False
    assert torch.equal(mask, expected)
    # At least one pixel of each image in every cell, whatever lambda is.
    for share, holes in ((0.0, 9 * 4), (1.0, 1 * 4)):
        whole = (torch.tensor([2]), torch.tensor([[0, 0]]), torch.tensor([[8, 8]]), (8, 8))
        assert (~hole_mask(torch.tensor([share], dtype=torch.float64), *whole)).sum() == holes


@pytest.mark.parametrize('size', [(16, 16), (15, 22)])
def test_noise_keeps_exactly_a_share_lambda_and_is_smoother_with_more_decay(size):
    share, total = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64), size[0] * size[1]
    mask = fourier_mask(share, size, 3.0, seeded())
    assert mask.sum((1, 2)).tolist() == [0, int(0.3 * total), total // 2, total]
    assert torch.equal(mask, fourier_mask(share, size, 3.0, seeded()))
    edges = [
        (fourier_mask(torch.full((8,), 0.5), size, decay, seeded()).diff(dim=2) != 0).float().mean()
        for decay in (0.0, 1.5, 3.0)
    ]
    assert edges[0] > 1.5 * edges[1] > 2.25 * edges[2]
    assert edges[0] == pytest.approx(0.5, abs=0.05), 'white noise without decay'


def test_the_spectrum_of_the_noise_falls_as_the_paper_says(monkeypatch):
    """Power 1 / f^(2 decay), measured on the noise before the threshold."""
    seen = []
    monkeypatch.setattr(masks, 'topk_mask', lambda noise, share: seen.append(noise) or noise > 0)
    fourier_mask(torch.full((400,), 0.5), (16, 16), 2.0, seeded())
    power = torch.fft.rfft2(seen[0].view(-1, 16, 16)).abs().square().mean(0)
    for (row, column), frequency in {
        (0, 1): 1 / 16,
        (0, 4): 4 / 16,
        (2, 2): 8**0.5 / 16,
        (13, 1): 10**0.5 / 16,
    }.items():
        assert power[row, column].item() * frequency**4 == pytest.approx(2, rel=0.25), (row, column)


def test_blocks_never_cover_more_than_asked_and_nearly_always_as_much():
    generator = torch.Generator().manual_seed(0)
    covered = [int(random_blocks((14, 14), 112, generator).sum()) for _ in range(100)]
    assert max(covered) <= 112 and sum(covered) / 100 > 110
    assert random_blocks((14, 14), 0, generator).sum() == 0
    assert len({tuple(random_blocks((4, 6), 10, generator).tolist()) for _ in range(20)}) > 10


def test_blocks_are_seeded():
    first, second = (random_blocks((14, 14), 112, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
