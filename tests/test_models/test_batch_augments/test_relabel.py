"""TransMix and MixPro: labels from the pass over the mixed images."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import BATCH_AUGMENTS, MODELS
from mmpretrain.structures import DataSample
from tiny_classifier import HEAD, batch, classifier, forwards, soft_cross_entropy
from tiny_vit import VIT

from mergemix_mm.functional import area_ratio, nearest_mask
from mergemix_mm.models.batch_augments import mix_batch
from mergemix_mm.models.vision_encoders import recorded

TOME = dict(VIT, type='ToMeVisionTransformer', num_merge=4)
LABELS = torch.eye(5)[:4]


def step(mixer, backbone=VIT):
    """One step of a model: the model, its losses, the mix, and the share of attention calculated by hand."""
    model, (images, samples) = classifier(backbone=backbone, train_cfg=dict(augments=mixer)), batch()
    passes = forwards(model)
    losses = model.loss(images, samples)
    assert passes == [4], 'one pass of four images, and no other'
    result = model.mix_result
    with recorded(model.backbone, result.images, layer=4) as recording:
        model.backbone(result.images)
    attention = recording.finished()[0].saliency
    own = nearest_mask(result.mask, result.grid, (4, 4)).float()
    return model, losses, result, (attention * own).sum(1) / attention.sum(1)


@pytest.mark.parametrize('backbone', [VIT, TOME], ids=['plain', 'merging'])
@pytest.mark.parametrize('area_weight', [0.0, 0.5])
def test_transmix_labels_by_the_attention_of_the_one_pass_that_is_trained(backbone, area_weight):
    model, losses, result, attention = step(dict(type='TransMix', area_weight=area_weight), backbone)
    area = area_ratio(result.mask)
    torch.testing.assert_close(result.ratio, area_weight * area + (1 - area_weight) * attention)
    assert len(area.unique()) == 1 and len(result.ratio.unique()) == 4
    expected = soft_cross_entropy(model, result.images, result.mix_scores(LABELS))
    torch.testing.assert_close(losses['loss'], expected)
    losses['loss'].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('backbone', [VIT, TOME], ids=['plain', 'merging'])
def test_mixpro_trusts_the_attention_as_far_as_the_model_predicts_the_label_of_the_area(backbone):
    model, losses, result, attention = step(dict(type='MixPro', cell_size=16), backbone)
    area, smooth = area_ratio(result.mask)[:, None], 0.9 * LABELS + 0.02
    label = area * smooth + (1 - area) * smooth[result.partner]
    logits = model(result.images, mode='tensor')
    trust = F.cosine_similarity(label, logits.softmax(1))
    torch.testing.assert_close(result.ratio, trust * attention + (1 - trust) * area[:, 0])
    torch.testing.assert_close(losses['trust'], trust.mean())
    expected = soft_cross_entropy(model, result.images, result.mix_scores(LABELS))
    torch.testing.assert_close(losses['loss'], expected)
    total, log = model.parse_losses(losses)
    torch.testing.assert_close(total, losses['loss'])
    assert 'trust' in log


def test_mixpro_shows_ceil_of_lambda_of_the_cells_and_cuts_those_at_the_border():
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 24)
    mixer = BATCH_AUGMENTS.build(dict(type='MixPro', cell_size=16, per_image=True))
    shares = torch.tensor([0.0, 1e-9, 0.25, 0.26, 0.5, 0.75, 0.76, 1.0], dtype=torch.float64)
    mixer.draw_lambda = lambda size, generator: shares
    result = mix_batch(mixer, images)
    assert result.grid == (4, 3), 'cells of two units, the last column of one'
    mask = result.mask.unflatten(1, result.grid)
    cells = mask[:, ::2, ::2]
    assert cells.sum((1, 2)).tolist() == [0, 1, 1, 2, 2, 3, 4, 4]
    assert torch.equal(cells.repeat_interleave(2, 1).repeat_interleave(2, 2)[..., :3], mask)
    torch.testing.assert_close(result.ratio, mask.float().mean((1, 2)))
    # A quarter of 224 pixels is 56, and four patches of 16 are 64.
    assert mix_batch(BATCH_AUGMENTS.build(dict(type='MixPro')), torch.zeros(2, 1, 224, 256)).grid == (7, 8)


@pytest.mark.parametrize(
    ('mixer', 'message'),
    [
        (dict(type='TransMix', area_weight=1.5), r'TransMix: area_weight=1.5 must be in \[0, 1\]'),
        (dict(type='MixPro', cell_size=0), 'MixPro: cell_size=0 must be an int >= 1, in pixels, or None'),
        (dict(type='MixPro', label_smooth_val=1), r'MixPro: label_smooth_val=1 must be in \[0, 1\)'),
        (dict(type='MixPro', cell_size=32), 'cell_size=32 must be smaller than the images of 32 x 32 pixels'),
        (dict(type='MixPro', cell_size=12), 'cell_size=12 must be a multiple of the patches of 8 x 8'),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(mixer, message):
    with pytest.raises(ValueError, match=message):
        classifier(train_cfg=dict(augments=mixer)).loss(*batch())


@pytest.mark.parametrize('name', ['TransMix', 'MixPro'])
def test_elsewhere_they_are_refused_in_one_line(name):
    plain = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=VIT,
            head=HEAD,
            data_preprocessor=dict(num_classes=5),
            train_cfg=dict(augments=dict(type=name)),
        )
    )
    sample = DataSample().set_gt_label(0)
    with pytest.raises(ValueError, match=rf"^{name} reads its labels .* train with model=dict\(type='MixupClassifier'"):
        plain.data_preprocessor(dict(inputs=torch.zeros(2, 3, 32, 32), data_samples=[sample] * 2), training=True)
