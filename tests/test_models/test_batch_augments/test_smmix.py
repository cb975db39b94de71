"""SMMix: the most attended square of the partner onto the least attended one, and its two losses."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import BATCH_AUGMENTS
from tiny_classifier import HEAD, batch, classifier
from tiny_vit import VIT

from mergemix_mm.functional import TokenGroups
from mergemix_mm.models.batch_augments import mix_batch
from mergemix_mm.models.vision_encoders import PatchScores, build_vision_encoder, score_patches

TOME = dict(VIT, type='ToMeVisionTransformer', num_merge=4)


def mixer(**kwargs):
    return BATCH_AUGMENTS.build(dict(type='SMMix', **kwargs))


def test_the_partners_most_salient_square_covers_the_own_least_salient_one():
    saliency = torch.ones(2, 4, 4)
    saliency[0, 2:, :2] = 0.0  # Least salient: at the lower left.
    saliency[1, :2, 2:] = 5.0  # Most salient: at the upper right.
    scores = PatchScores(saliency.flatten(1), TokenGroups.identity(2, 16), (4, 4), 0)
    images = torch.randn(2, 3, 8, 8)
    result = mixer(min_side=0.5, max_side=0.5).mix_scored(images, scores, partner=torch.tensor([1, 0]))
    expected = images[0].clone()
    expected[:, 4:, :4] = images[1, :, :4, 4:]
    assert torch.equal(result.images[0], expected)
    assert result.ratio.tolist() == [0.75, 0.75]


def test_attention_is_what_patches_get_from_patches_in_the_last_layer():
    model, (images, _) = classifier().eval(), batch()
    encoder = build_vision_encoder(model.backbone)
    scores = score_patches(encoder, images, num_merge=0, layer=-1, saliency='received')
    tokens = []
    model.backbone.layers[-1].register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    model.backbone(images)
    query, key, _ = encoder.layers[-1].query_key_value(tokens[0])
    attention = (query @ key.transpose(2, 3) * query.size(-1) ** -0.5).softmax(-1)
    torch.testing.assert_close(scores.saliency, attention[:, :, 1:, 1:].mean(dim=(1, 2)))


@pytest.mark.parametrize('backbone', [VIT, TOME], ids=['plain', 'merging'])
def test_losses_of_regions_and_of_consistency_by_hand_in_two_passes(backbone):
    augment = dict(type='SMMix', region_weight=0.5, consistency_weight=2.0)
    model, (images, samples) = classifier(backbone=backbone, train_cfg=dict(augments=augment)).eval(), batch()
    passes = []
    handle = model.backbone.patch_embed.register_forward_pre_hook(lambda module, args: passes.append(1))
    losses, result = model.loss(images, samples), model.mix_result
    assert len(passes) == 2
    handle.remove()
    total, _ = model.parse_losses(losses)
    torch.testing.assert_close(total, losses['loss'] + losses['region_loss'] + losses['consistency_loss'])

    clean, mixed = model(images, mode='tensor'), model(result.images, mode='tensor')
    share = result.ratio[:, None]
    target = (share * clean + (1 - share) * clean[result.partner]).softmax(1)
    consistency = (target * (target.log() - mixed.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(losses['consistency_loss'], 2 * consistency)

    model.backbone.out_type = 'raw'
    tokens = model.backbone(result.images)[-1][:, 1:]
    labels, expected = torch.arange(4), 0.0
    for mask, label in ((result.mask, labels), (~result.mask, labels[result.partner])):
        mean = torch.stack([own[keep].mean(0) for own, keep in zip(tokens, mask, strict=True)])
        expected = expected + F.cross_entropy(model.head.layers.head(mean), label)
    torch.testing.assert_close(losses['region_loss'], 0.5 / 2 * expected)
    total.backward()


@pytest.mark.filterwarnings('ignore:MMPretrain cannot train the distilled')
@pytest.mark.parametrize('name', ['SMMix', 'TdAttenMix'])
def test_a_distilled_backbone_gets_the_mean_of_a_region_for_both_of_its_tokens(name):
    distilled = dict(backbone=dict(VIT, type='DistilledVisionTransformer'), head=dict(HEAD, type='DeiTClsHead'))
    model, (images, samples) = classifier(**distilled, train_cfg=dict(augments=dict(type=name))).eval(), batch()
    losses, result = model.loss(images, samples), model.mix_result
    tokens = []
    model.backbone.ln1.register_forward_hook(lambda module, args, output: tokens.append(output[:, 2:]))
    model.backbone(result.images)
    labels, expected = torch.arange(4), 0.0
    for mask, label in ((result.mask, labels), (~result.mask, labels[result.partner])):
        mean = torch.stack([own[keep].mean(0) for own, keep in zip(tokens[0], mask, strict=True)])
        logits = (model.head.layers.head(mean) + model.head.layers.head_dist(mean)) / 2
        expected = expected + F.cross_entropy(logits, label) / 2
    torch.testing.assert_close(losses['region_loss'], expected)


def test_without_its_losses_it_needs_no_classifier():
    plain = mixer(region_weight=0, consistency_weight=0)
    assert plain.needs_mixup_classifier() is None and plain.needs_encoder
    assert 'needs the classifier' in mixer().needs_mixup_classifier()
    model, (images, _) = classifier(), batch()
    result = mix_batch(plain, images, model.backbone)
    sides = {int((~mask).sum()) for mask in result.mask}
    assert len(sides) == 1 and sides <= {1, 4, 9}
    assert not plain.resizes


@pytest.mark.parametrize('options', [dict(min_side=0), dict(max_side=0.1), dict(region_weight=-1)], ids=str)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f'SMMix: {next(iter(options))}'):
        mixer(**options)
