"""TokenMix: blocks of tokens, labels by the visible part of each map."""

import pytest
import torch
from mmpretrain.registry import BATCH_AUGMENTS
from tiny_classifier import batch, classifier
from tiny_vit import VIT

from mergemix_mm.functional import TokenGroups, visible_scores
from mergemix_mm.models.vision_encoders import PatchScores, build_vision_encoder, score_patches

TEACHER = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=32),
)


def mixer(**kwargs):
    return BATCH_AUGMENTS.build(dict(type='TokenMix', patch_size=8, **kwargs))


def test_labels_are_what_is_visible_of_each_map_and_the_classifier_trains_on_them():
    model, (images, samples) = classifier(train_cfg=dict(augments=dict(type='TokenMix', patch_size=8))), batch()
    losses, result = model.loss(images, samples), model.mix_result
    saliency = score_patches(build_vision_encoder(model.backbone), images).saliency
    own, other = visible_scores(saliency, result.partner, result.mask)
    torch.testing.assert_close((result.ratio, result.partner_ratio), (own, other))
    assert not torch.allclose(own + other, torch.ones(4), atol=0.01)
    labels = own[:, None] * torch.eye(5)[:4] + other[:, None] * torch.eye(5)[result.partner]
    logits = model(result.images, mode='tensor')
    torch.testing.assert_close(losses['loss'], -(labels * logits.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize('ratio', ['area', 'attention'])
def test_labels_of_other_ratios_sum_to_one(ratio):
    model, (images, _) = classifier(), batch()
    result = mixer(ratio=ratio).mix(images, model.backbone)
    assert result.partner_ratio is None
    torch.testing.assert_close(result.mix_scores(torch.eye(4)).sum(1), torch.ones(4))


def test_the_partner_takes_its_share_in_blocks_of_whole_tokens():
    images = torch.randn(4, 3, 112, 112)
    result = mixer(ratio='area').mix(images)
    assert result.grid == (14, 14) and not result.mask.all()
    assert torch.equal(result.mask[0], result.mask[3])
    assert result.ratio.tolist() == pytest.approx([3 / 7] * 4, abs=0.02)
    own = result.mask.unflatten(1, (14, 14)).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    assert torch.equal(result.images, torch.where(own, images, images[result.partner]))


def test_a_teacher_scores_the_true_class_at_each_place_of_its_feature_map():
    model, (images, samples) = (
        classifier(train_cfg=dict(augments=dict(type='TokenMix', patch_size=8, teacher=TEACHER))),
        batch(),
    )
    token_mix = model.augments.augments[0]
    assert token_mix.needs_classifier and not token_mix.needs_encoder
    features = token_mix.teacher.backbone(images)[-1]
    fc = token_mix.teacher.head.fc
    logits = torch.einsum('bchw,kc->bkhw', features, fc.weight) + fc.bias[:, None, None]
    expected = torch.stack([x.softmax(0)[label] for label, x in enumerate(logits)]).flatten(1)
    model.loss(images, samples)
    torch.testing.assert_close(model.mix_result.saliency, expected)
    assert not any(parameter.requires_grad for parameter in token_mix.teacher.parameters())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(head=dict(type='LinearClsHead', num_classes=7, in_channels=32)), 'teacher has 7 classes, the data 5'),
        (dict(backbone=VIT, neck=None), r'VisionTransformer gives \[4, 16\], and a feature map'),
    ],
    ids=['classes', 'no map'],
)
def test_a_teacher_that_cannot_tell_is_refused(change, message):
    teacher = TEACHER | change
    model, (images, samples) = classifier(train_cfg=dict(augments=dict(type='TokenMix', teacher=teacher))), batch()
    with pytest.raises(ValueError, match=message):
        model.loss(images, samples)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(partner_share=1.0), r'partner_share=1.0 must be in \(0, 1\)'),
        (dict(ratio='gaussian'), 'ratio='),
        (dict(teacher=TEACHER, ratio='area'), "teacher beside ratio='area'"),
        (dict(teacher=TEACHER, layer=2), 'layer=2 has no effect beside a teacher'),
        (dict(alpha=0.5), 'draws no lambda; remove alpha'),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mixer(**options)


@pytest.mark.parametrize('size', [8, 20])
def test_images_that_are_not_a_multiple_of_the_tokens_are_refused(size):
    with pytest.raises(ValueError, match=f'images of {size} x {size} pixels must be a multiple of patch_size=8'):
        mixer(ratio='area').mix(torch.randn(2, 3, size, size))


def test_labels_that_do_not_sum_to_one_make_no_margin():
    assert 'does not sum to one' in mixer().no_margin and mixer(ratio='attention').no_margin is None


def test_maps_on_another_grid_see_the_mask_at_their_own_resolution():
    scores = PatchScores(torch.tensor([[1.0], [1.0]]), TokenGroups.identity(2, 1), (1, 1), 0)
    result = mixer().mix_scored(torch.randn(2, 3, 32, 32), scores)
    torch.testing.assert_close(result.ratio, result.mask.float().mean(1))
