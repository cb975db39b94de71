"""GuidedMix in a classifier, in a plain call and on the images of a vision-language model."""

import pytest
import torch
from mmpretrain.registry import BATCH_AUGMENTS
from tiny_classifier import batch, classifier, soft_cross_entropy

from mergemix_mm.functional import area_ratio, greedy_cycle, saliency_share
from mergemix_mm.models import GuidedMix
from mergemix_mm.models.batch_augments import TrainingBatch
from mergemix_mm.models.tuners import mix_canvases


@pytest.fixture
def images():
    """Dark images with one bright square each, in different corners."""
    images = 0.02 * torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for image, (row, col) in zip(images, [(2, 2), (2, 22), (22, 2), (22, 22)], strict=True):
        image[:, row : row + 8, col : col + 8] = 1
    return images


def test_each_square_shows_and_the_label_is_the_mean_of_the_mask(images):
    before = images.clone()
    result = BATCH_AUGMENTS.build(dict(type='GuidedMix')).mix(images)
    assert torch.equal(images, before) and result.grid == (32, 32)
    share = saliency_share(result.saliency, result.partner)
    torch.testing.assert_close(result.mask, share)
    torch.testing.assert_close(result.ratio, share.mean(dim=1))
    weight = share.view(4, 1, 32, 32)
    torch.testing.assert_close(result.images, weight * images + (1 - weight) * images[result.partner])
    square = images[:, 0] == 1
    assert weight[:, 0][square].mean() > 0.8 > 0.2 > weight[:, 0][square[result.partner]].mean()
    assert torch.equal(result.partner, greedy_cycle(result.saliency))


def test_the_gradient_of_the_loss_can_be_the_saliency():
    model, (images, samples) = classifier(train_cfg=dict(augments=dict(type='GuidedMix', source='gradient'))), batch()
    losses, result = model.loss(images, samples), model.mix_result
    expected = soft_cross_entropy(model, result.images, result.mix_scores(torch.eye(5)[:4]))
    torch.testing.assert_close(losses['loss'], expected)
    torch.testing.assert_close(result.ratio, area_ratio(result.mask))
    assert len(result.ratio.unique()) == 4


def test_the_gradient_needs_a_classifier(images):
    mixer = GuidedMix(source='gradient')
    with pytest.raises(ValueError, match='GuidedMix needs the classifier and the labels'):
        mixer.mix(images)
    with pytest.raises(ValueError, match="train with model=dict\\(type='MixupClassifier'"):
        mixer(images, torch.eye(4))
    assert GuidedMix().needs_mixup_classifier() is None


def test_it_mixes_images_and_labels_in_a_plain_classifier(images):
    mixed, labels = GuidedMix()(images, torch.eye(4))
    assert not torch.equal(mixed, images)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(4))


def test_images_of_a_vision_language_model_keep_their_sizes_and_partners_of_other_samples():
    generator = torch.Generator().manual_seed(0)
    sizes = [(32, 32), (30, 50), (32, 32), (48, 20)]
    canvases, owner = [torch.randn(3, *size, generator=generator) for size in sizes], torch.tensor([0, 0, 1, 1])
    result = mix_canvases(GuidedMix(), canvases, owner)
    assert [tuple(image.shape[1:]) for image in result.images] == sizes
    assert (owner[result.partner] != owner).all()
    for i, mask in enumerate(result.mask):
        torch.testing.assert_close(mask.mean(), result.ratio[i])


@pytest.mark.parametrize('kwargs', [dict(source='attention'), dict(sigma=0), dict(sigma=float('inf'))])
def test_options_out_of_range_are_refused(kwargs):
    ((key, value),) = kwargs.items()
    with pytest.raises(ValueError, match=f'GuidedMix: {key}={value!r} must be'):
        GuidedMix(**kwargs)


def test_saliency_of_a_classifier_leaves_it_as_it_was():
    """Eval mode for the gradient: no dropout is drawn, no statistics move, no parameter gets a gradient."""
    backbone = dict(type='ResNet', depth=18, stem_channels=8, base_channels=8, norm_eval=False)
    head = dict(type='LinearClsHead', num_classes=5, in_channels=64)
    mixer = GuidedMix(source='gradient')
    model = classifier(backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head).train()
    model.backbone.layer1.eval()
    images, samples = batch()
    before, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    state = torch.get_rng_state()
    scores = mixer.score_batch(TrainingBatch(model, images, torch.eye(5)[:4], samples))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert not scores.saliency.requires_grad and not images.requires_grad and scores.saliency.min() >= 0
