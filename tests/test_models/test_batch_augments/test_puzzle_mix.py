"""Puzzle Mix: graph cuts against all masks, moves against staying, and the mixer in a classifier."""

import itertools
import sys

import pytest
import torch
from mmpretrain.registry import BATCH_AUGMENTS
from tiny_classifier import batch, classifier, soft_cross_entropy

from mergemix_mm.functional import MaskCosts, area_ratio, mask_costs, move_cells, transport_costs
from mergemix_mm.models import PuzzleMix
from mergemix_mm.models.batch_augments import TrainingBatch
from mergemix_mm.models.batch_augments.input_gradient import pixel_scores
from mergemix_mm.models.batch_augments.puzzle_mix import assign_places, cut_masks


def all_masks(rows, cols):
    return torch.tensor(list(itertools.product(range(3), repeat=rows * cols))).view(-1, rows, cols)


@pytest.mark.parametrize('grid', [(2, 2), (3, 3), (1, 4)])
def test_the_cut_has_the_least_energy_of_all_masks(grid):
    pytest.importorskip('maxflow')
    generator = torch.Generator().manual_seed(0)
    rows, cols = grid
    costs = MaskCosts(
        torch.rand(6, rows, cols, 3, generator=generator),
        torch.rand(6, rows - 1, cols, generator=generator),
        torch.rand(6, rows, cols - 1, generator=generator),
    )
    masks, labels = all_masks(rows, cols), cut_masks(costs)
    assert len(labels.unique()) == 3
    for i, energy in enumerate(costs.energy(labels)):
        one = MaskCosts(
            *(x[i : i + 1].expand(len(masks), *x.shape[1:]) for x in (costs.unary, costs.down, costs.across))
        )
        torch.testing.assert_close(energy, one.energy(masks).min())


def test_the_cut_of_real_costs_has_the_least_energy_of_all_masks():
    pytest.importorskip('maxflow')
    generator = torch.Generator().manual_seed(0)
    images, saliency = torch.rand(4, 3, 12, 12, generator=generator), torch.rand(4, 3, 3, generator=generator)
    costs = mask_costs(saliency, torch.tensor([1, 2, 3, 0]), images, torch.tensor([0.2, 0.5, 0.7, 0.99]))
    masks, found = all_masks(3, 3), costs.energy(cut_masks(costs))
    for i in range(4):
        one = MaskCosts(
            *(x[i : i + 1].expand(len(masks), *x.shape[1:]) for x in (costs.unary, costs.down, costs.across))
        )
        torch.testing.assert_close(found[i], one.energy(masks).min())


def test_moves_are_permutations_and_never_worse_than_staying():
    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(5, 4, 4, generator=generator) ** 3
    share = torch.randint(3, (5, 4, 4), generator=generator) / 2
    costs = transport_costs(saliency, share, t_eps=0.1)
    source = assign_places(costs)
    assert torch.equal(source.sort(dim=1).values, torch.arange(16).expand(5, 16))
    moved = costs.gather(1, source[:, None])[:, 0].sum(dim=1)
    stayed = costs.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert (moved <= stayed + 1e-6).all() and (moved < stayed - 1e-3).any()


def test_the_salient_cell_moves_to_where_the_image_shows():
    saliency, share = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    saliency[0, 0, 0] = share[0, 0, 1] = 1
    assert assign_places(transport_costs(saliency, share, t_eps=0.4)).tolist() == [[1, 0, 2, 3]]
    # The way there and back costs 2 * 0.8 at a saliency of 1.
    assert assign_places(transport_costs(saliency, share, t_eps=0.8)).tolist() == [[0, 1, 2, 3]]


def test_the_loss_is_that_of_the_mixed_images_and_the_label_is_the_mean_of_the_mask():
    pytest.importorskip('maxflow')
    model, (images, samples) = classifier(train_cfg=dict(augments=dict(type='PuzzleMix'))), batch()
    before = images.clone()
    losses, result = model.loss(images, samples), model.mix_result
    assert torch.equal(images, before)
    expected = soft_cross_entropy(model, result.images, result.mix_scores(torch.eye(5)[:4]))
    torch.testing.assert_close(losses['loss'], expected)
    torch.testing.assert_close(result.ratio, area_ratio(result.mask))
    assert set(result.mask.unique().tolist()) <= {0, 0.5, 1}


@pytest.mark.parametrize('t_eps', [None, 0.01])
def test_cells_are_blended_after_they_have_moved(t_eps):
    pytest.importorskip('maxflow')
    # Saliency in a corner each, so that what shows can move away from the other image.
    maps = 0.1 * torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0))
    maps[:2, 2:14, 4:12] = maps[2:, 1:20, 2:16] = 1
    images, scores = batch()[0], pixel_scores(maps)
    mixer = BATCH_AUGMENTS.build(dict(type='PuzzleMix', sides=[8], t_eps=t_eps))
    result = mixer.mix_scored(images, scores, torch.Generator().manual_seed(0))
    assert result.grid == (8, 8)
    share = result.mask.view(4, 8, 8)
    own, others = images, images[result.partner]
    if t_eps is not None:
        saliency = scores.saliency.view(4, 8, 4, 8, 4).mean(dim=(2, 4))
        own = move_cells(own, assign_places(transport_costs(saliency, share, t_eps)), (8, 8))
        costs = transport_costs(saliency[result.partner], 1 - share, t_eps)
        others = move_cells(others, assign_places(costs), (8, 8))
        assert not torch.equal(own, images)
    weight = share.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    torch.testing.assert_close(result.images, weight * own + (1 - weight) * others)
    again = mixer.mix_scored(images, scores, torch.Generator().manual_seed(0))
    assert torch.equal(again.images, result.images) and torch.equal(again.mask, result.mask)


def test_lambda_moves_the_prior_from_the_partner_to_the_image():
    pytest.importorskip('maxflow')
    generator = torch.Generator().manual_seed(0)
    images, saliency = torch.rand(2, 3, 16, 16, generator=generator), torch.rand(2, 8, 8, generator=generator)
    shares = []
    for lam in (0.05, 0.5, 0.95):
        costs = mask_costs(saliency, torch.tensor([1, 0]), images, torch.full((2,), lam))
        shares.append(cut_masks(costs).float().mean(dim=(1, 2)) / 2)
    assert (shares[0] < shares[1]).all() and (shares[1] < shares[2]).all()


def test_without_pymaxflow_there_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'maxflow', None)
    with pytest.raises(ImportError, match=r"needs PyMaxflow for its graph cuts: pip install -e '\.\[puzzlemix\]'"):
        PuzzleMix()


def test_images_that_do_not_fit_a_grid_and_images_without_labels_are_refused():
    pytest.importorskip('maxflow')
    model, (images, samples) = classifier(), batch()
    mixer = PuzzleMix(sides=(2, 5))
    scores = mixer.score_batch(TrainingBatch(model, images, torch.eye(5)[:4], samples))
    with pytest.raises(ValueError, match=r'sides=\(2, 5\) has 5, and images of 32 x 32 pixels'):
        mixer.mix_scored(images, scores)
    with pytest.raises(ValueError, match='PuzzleMix needs the classifier and the labels'):
        mixer.mix(images)
    with pytest.raises(ValueError, match="train with model=dict\\(type='MixupClassifier'"):
        mixer(images, torch.eye(4))


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(alpha=0),
        dict(beta=-1.0),
        dict(gamma=1.5),
        dict(eta=-0.1),
        dict(t_eps=-1.0),
        dict(sides=(1,)),
        dict(sides=()),
    ],
)
def test_options_out_of_range_are_refused(kwargs):
    pytest.importorskip('maxflow')
    with pytest.raises(ValueError, match=f'PuzzleMix: .*{next(iter(kwargs))}'):
        PuzzleMix(**kwargs)
