"""Energies of Puzzle Mix against their definition, written out cell by cell."""

import math

import pytest
import torch

from mergemix_mm.functional import mask_costs, move_cells, transport_costs

BETA, GAMMA, ETA = 1.2, 0.5, 0.2


def batch(rows=2, cols=3, cell=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, rows * cell, cols * cell, generator=generator)
    saliency = torch.rand(3, rows, cols, generator=generator)
    return images, saliency, torch.tensor([1, 2, 0]), torch.tensor([0.3, 0.5, 0.9])


def written_out(images, saliency, partner, lam, share, cell=4):
    """The energy of shares in {0, 1}, from the pixels that are shown on both sides of every border."""
    energies = []
    for i, j in enumerate(partner.tolist()):
        own, other = saliency[i] / saliency[i].sum(), saliency[j] / saliency[j].sum()
        rows, cols = own.shape
        value = -(share[i] * own + (1 - share[i]) * other).sum()
        chance = torch.where(share[i] == 1, lam[i] ** 2, (1 - lam[i]) ** 2)
        value = value - ETA / own.numel() * chance.log().sum()
        weight = BETA / (16 * math.sqrt(own.numel()))

        def shown(row, col, i=i, j=j):
            image = images[i] if share[i][row, col] == 1 else images[j]
            return image[:, row * cell : (row + 1) * cell, col * cell : (col + 1) * cell]

        for row in range(rows):
            for col in range(cols):
                for below, right in ((1, 0), (0, 1)):
                    if row + below == rows or col + right == cols:
                        continue
                    # Cells of 4 pixels: one neighbourhood of 4 x 4 pixels on each side.
                    here, there = (x.mean(dim=(1, 2)) for x in (shown(row, col), shown(row + below, col + right)))
                    differ = share[i][row, col] != share[i][row + below, col + right]
                    value = value + weight * (differ.float() + GAMMA * (here - there).abs().mean())
        energies.append(value)
    return torch.stack(energies)


def test_differences_of_energies_are_those_of_the_definition():
    images, saliency, partner, lam = batch()
    costs = mask_costs(saliency, partner, images, lam, BETA, GAMMA, ETA)
    generator = torch.Generator().manual_seed(1)
    masks = [torch.randint(2, saliency.shape, generator=generator) for _ in range(5)]
    found = torch.stack([costs.energy(2 * mask) for mask in masks])
    expected = torch.stack([written_out(images, saliency, partner, lam, mask.float()) for mask in masks])
    torch.testing.assert_close(found - found[0], expected - expected[0], atol=1e-6, rtol=1e-5)


def test_a_share_of_one_half_shows_half_of_both_saliencies_and_has_the_middle_probability():
    _, saliency, partner, lam = batch()
    flat = torch.zeros(3, 3, 8, 12)
    costs = mask_costs(saliency, partner, flat, lam, BETA, GAMMA, ETA)
    middle = costs.energy(torch.ones(3, 2, 3, dtype=torch.int64))
    expected = -1 - ETA * (2 * lam * (1 - lam)).log()  # Both maps sum to 1, and equal neighbours cost nothing.
    torch.testing.assert_close(middle, expected)
    one = torch.ones(3, 2, 3, dtype=torch.int64)
    one[:, 0, 0] = 2
    others = costs.unary[:, 0, 0, 2] - costs.unary[:, 0, 0, 1]
    weight = BETA / (16 * math.sqrt(6))
    torch.testing.assert_close(costs.energy(one) - middle, others + 2 * weight / 4)


@pytest.mark.parametrize('cell', [1, 2, 6, 14])
def test_cells_of_any_size_have_weights_that_are_not_negative(cell):
    images, saliency, partner, lam = batch(rows=4, cols=4, cell=cell)
    costs = mask_costs(saliency, partner, images, lam, gamma=1.0)
    assert costs.down.shape == (3, 3, 4) and costs.across.shape == (3, 4, 3)
    assert (costs.down >= 0).all() and (costs.across >= 0).all() and costs.unary.isfinite().all()


def test_moving_costs_the_squared_distance_less_the_saliency_that_shows():
    saliency, share = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 0.5], [0.0, 1.0]]])
    costs = transport_costs(saliency, share, t_eps=0.8)[0]
    assert costs[1].tolist() == pytest.approx([0.8, -0.75 * 0.5, 1.6, 0.8 - 0.75])
    assert costs[2].tolist() == pytest.approx([0.8, 1.6, 0, 0.8])


def test_cells_move_as_wholes_to_the_places_that_name_them():
    images = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    source = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    moved = move_cells(images, source, (2, 3))
    for image in range(2):
        for place in range(6):
            (row, col), (from_row, from_col) = divmod(place, 3), divmod(int(source[image, place]), 3)
            there = moved[image, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
            here = images[image, :, 2 * from_row : 2 * from_row + 2, 2 * from_col : 2 * from_col + 2]
            assert torch.equal(there, here)
