"""TdAttenMix: the square that matters for the class, and the label of what is visible of both."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import BATCH_AUGMENTS
from tiny_classifier import HEAD, batch, classifier, forwards, soft_cross_entropy
from tiny_vit import VIT

from mergemix_mm.functional import TokenGroups, area_ratio, extreme_blocks, shift_patches
from mergemix_mm.models.batch_augments import mix_batch
from mergemix_mm.models.vision_encoders import PatchScores, recorded

TOME = dict(VIT, type='ToMeVisionTransformer', num_merge=4)
TDATTENMIX = dict(type='TdAttenMix', min_side=0.5, max_side=0.5)


@pytest.mark.parametrize(('mixer', 'area_weight'), [('TdAttenMix', 0.5), ('TdAttenMix', 0.0), ('SMMix', None)])
def test_the_label_counts_the_saliency_of_what_is_shown_of_the_moved_partner(mixer, area_weight):
    saliency = torch.ones(2, 4, 4)
    saliency[0, 2:, :2] = 0.0  # The least salient square of the first image is covered,
    saliency[1, :2, 2:] = 5.0  # by the most salient one of the second.
    scores = PatchScores(saliency.flatten(1), TokenGroups.identity(2, 16), (4, 4), 0)
    options = dict(ratio='attention') if area_weight is None else dict(area_weight=area_weight)
    one = BATCH_AUGMENTS.build(TDATTENMIX | dict(type=mixer) | options)
    result = one.mix_scored(torch.randn(2, 3, 8, 8), scores, partner=torch.tensor([1, 0]))
    # 12 of saliency 1 are left, 4 of saliency 5 come. The second image is covered at its first least salient square,
    # on the left, by the first most salient one, of saliency 1.
    shares, weight = torch.tensor([12 / 32, 28 / 32]), area_weight or 0.0
    torch.testing.assert_close(result.ratio, weight * 0.75 + (1 - weight) * shares)


@pytest.mark.parametrize('backbone', [VIT, TOME], ids=['plain', 'merging'])
def test_saliency_is_attention_times_the_likeness_to_the_class_in_one_pass_over_the_clean_images(backbone):
    model, (images, samples) = (
        classifier(backbone=backbone, train_cfg=dict(augments=TDATTENMIX)),
        batch(4, [3, 0, 3, 1]),
    )
    passes = forwards(model)
    losses, result = model.loss(images, samples), model.mix_result
    assert passes == [4, 4], 'the clean and the mixed images'
    with recorded(model.backbone, images, layer=4) as recording:
        model.backbone(images)
    scores, tokens = recording.finished()
    weight = model.head.layers.head.weight[[3, 0, 3, 1]]
    alike = F.cosine_similarity(tokens[:, 1:], weight[:, None], dim=2).clamp(0, 1)
    torch.testing.assert_close(result.saliency, scores.saliency * alike)
    least, most = extreme_blocks(result.saliency, (4, 4), 2)
    partners = shift_patches(images[result.partner], least - most[result.partner], (4, 4))
    inside = ~result.mask.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(result.images, torch.where(inside, partners, images))

    labels = torch.eye(5)[[3, 0, 3, 1]]
    torch.testing.assert_close(losses['loss'], soft_cross_entropy(model, result.images, result.mix_scores(labels)))
    assert not torch.allclose(result.ratio, area_ratio(result.mask))
    # The predictions of the clean images are mixed as the labels are.
    clean, mixed = model(images, mode='tensor'), model(result.images, mode='tensor')
    target = (result.ratio[:, None] * clean + (1 - result.ratio[:, None]) * clean[result.partner]).softmax(1)
    expected = F.kl_div(mixed.log_softmax(1), target, reduction='batchmean')
    torch.testing.assert_close(losses['consistency_loss'], expected)
    model.parse_losses(losses)[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_without_the_losses_and_beside_a_clean_pass_the_classes_still_decide():
    augment = dict(TDATTENMIX, region_weight=0, consistency_weight=0)
    model = classifier(backbone=TOME, clean_weight=1.0, train_cfg=dict(augments=augment))
    losses = model.loss(*batch())
    assert set(losses) == {'loss', 'clean_loss', 'ratio_mean'}
    assert (model.mix_result.saliency == 0).any()


def test_it_is_refused_without_a_classifier_or_its_weights():
    mixer = BATCH_AUGMENTS.build(TDATTENMIX)
    with pytest.raises(ValueError, match=r"^TdAttenMix needs the classifier .* train with model=dict\(type='Mixup"):
        mixer(torch.zeros(2, 3, 8, 8), torch.eye(2))
    with pytest.raises(ValueError, match='^TdAttenMix needs the classifier'):
        mix_batch(mixer, torch.zeros(2, 3, 32, 32), classifier().backbone)
    with pytest.raises(ValueError, match=r'weights \[\(5, 8\), \(8, 16\)\], and must have one of \(5, 16\)'):
        classifier(head=dict(HEAD, hidden_dim=8), train_cfg=dict(augments=TDATTENMIX)).loss(*batch())
    with pytest.raises(ValueError, match=r'TdAttenMix: area_weight=-1 must be in \[0, 1\]'):
        BATCH_AUGMENTS.build(dict(TDATTENMIX, area_weight=-1))
