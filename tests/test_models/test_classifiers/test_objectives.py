"""What MixupClassifier trains on: clean images beside mixed ones, shared passes, reduced ratios, mixers that read."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.losses import LabelSmoothLoss
from mmpretrain.registry import BATCH_AUGMENTS, MODELS
from mmpretrain.structures import DataSample
from tiny_classifier import HEAD, MERGEMIX, batch, classifier, forwards, soft_cross_entropy
from tiny_vit import VIT

from mergemix_mm.functional import area_ratio
from mergemix_mm.models.batch_augments import MaskMixer, mix_batch
from mergemix_mm.models.vision_encoders import SALIENCIES, build_vision_encoder, recorded, score_patches

TOME = dict(VIT, type='ToMeVisionTransformer', num_merge=4, inflection=-0.5)


@pytest.mark.parametrize(('backbone', 'num_passes'), [(VIT, 3), (TOME, 2)], ids=['plain', 'merging'])
def test_clean_loss_is_the_one_hot_loss_and_a_merging_clean_pass_scores_as_well(backbone, num_passes):
    model, (images, samples) = classifier(backbone=backbone, clean_weight=0.7), batch()
    passes = forwards(model)
    losses = model.loss(images, samples)
    assert len(passes) == num_passes
    labels, result = torch.eye(5)[:4], model.mix_result
    torch.testing.assert_close(losses['clean_loss'], 0.7 * soft_cross_entropy(model, images, labels))
    torch.testing.assert_close(losses['loss'], soft_cross_entropy(model, result.images, result.mix_scores(labels)))
    total, log = model.parse_losses(losses)
    torch.testing.assert_close(total, losses['loss'] + losses['clean_loss'])
    torch.testing.assert_close(log['loss'], total)
    torch.testing.assert_close(log['mixed_loss'], losses['loss'])
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('saliency', SALIENCIES)
def test_the_clean_pass_scores_with_the_schedule_of_the_backbone(saliency):
    train_cfg = dict(augments=[dict(type='MergeMix', saliency=saliency)])
    model, (images, samples) = classifier(backbone=TOME, clean_weight=1.0, train_cfg=train_cfg), batch()
    model.loss(images, samples)
    encoder = build_vision_encoder(model.backbone)
    depth, layer = len(encoder.layers), -(-3 * len(encoder.layers) // 4)
    with patch('mergemix_mm.models.vision_encoders.forward._scoring_schedule') as schedule:
        from mergemix_mm.functional import merge_schedule

        tokens = encoder.num_prefix_tokens + 16
        whole = merge_schedule(depth, 4, -0.5, num_tokens=tokens, protected=encoder.num_prefix_tokens)
        schedule.return_value = whole[: layer - 1]
        expected = score_patches(encoder, images, saliency=saliency)
    torch.testing.assert_close(model.mix_result.saliency, expected.saliency)
    assert expected.num_kept_patches < 16 and not model.mix_result.saliency.requires_grad


def test_drop_path_stays_active_in_the_clean_pass_that_scores():
    model, (images, samples) = classifier(backbone=dict(TOME, drop_path_rate=0.9), clean_weight=1.0).train(), batch()
    maps = []
    for _ in range(4):
        model.loss(images, samples)
        maps.append(model.mix_result.saliency)
    assert any(not torch.equal(maps[0], other) for other in maps[1:])


def test_an_unmixed_batch_has_the_clean_loss_in_place_of_the_mixed_one():
    model, (images, samples) = classifier(train_cfg=MERGEMIX | dict(probs=[0.0]), clean_weight=0.5), batch()
    passes = forwards(model)
    losses = model.loss(images, samples)
    assert set(losses) == {'clean_loss', 'ratio_mean'} and len(passes) == 1
    torch.testing.assert_close(losses['clean_loss'], 0.5 * soft_cross_entropy(model, images, torch.eye(5)[:4]))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(clean_weight=-1), 'clean_weight=-1 must be >= 0'),
        (dict(ratio_reduce='sum'), "ratio_reduce='sum' must be None or 'batch_mean'"),
        (dict(num_merge=4), r'num_merge=4 has no effect .* with its own num_merge=4; remove num_merge'),
        (dict(mask='topk'), 'num_merge=0 has no effect'),
        (dict(inflection=0.5), r'inflection=0.5 has no effect .* inflection=-0.5'),
        (dict(prop_attn=False), 'prop_attn=False has no effect'),
        (dict(score_scale=0.5), 'score_scale=0.5 has no effect'),
    ],
    ids=str,
)
def test_what_would_have_no_effect_or_is_out_of_range_is_refused(options, message):
    whole = {key: options[key] for key in ('clean_weight', 'ratio_reduce') if key in options}
    augment = dict(type='MergeMix') | {key: value for key, value in options.items() if key not in whole}
    with pytest.raises(ValueError, match=message):
        classifier(backbone=TOME, train_cfg=dict(augments=augment), **dict(clean_weight=1.0) | whole)


def test_the_released_loss_is_that_of_the_batch_mean_of_the_ratios():
    """The release multiplies a loss that is a mean over the batch by the ratio of each image, and averages."""
    smooth = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    model = classifier(
        head=dict(HEAD, loss=smooth),
        ratio_reduce='batch_mean',
        train_cfg=dict(augments=dict(type='MergeMix', ratio='gaussian')),
    )
    drawn = []
    (images, samples), real = batch(), MaskMixer.mix_scored

    def keep(self, *args, **kwargs):
        drawn.append(real(self, *args, **kwargs))
        return drawn[-1]

    with patch.object(MaskMixer, 'mix_scored', keep):
        losses = model.loss(images, samples)
    ratio, partner = drawn[0].ratio, drawn[0].partner
    logits = model(drawn[0].images, mode='tensor')
    scalar = LabelSmoothLoss(0.1, num_classes=5, mode='original')  # A mean over the batch, one number.
    labels = torch.arange(4)
    released = (scalar(logits, labels) * ratio + scalar(logits, labels[partner]) * (1 - ratio)).mean()
    torch.testing.assert_close(losses['loss'], released)
    per_image = soft_cross_entropy_smoothed(logits, labels, partner, ratio)
    assert abs(per_image - released) > 1e-3  # What one would have thought that it trains on.
    assert len(ratio.unique()) == 4 and len(model.mix_result.ratio.unique()) == 1


def soft_cross_entropy_smoothed(logits, labels, partner, ratio):
    own, other = (F.cross_entropy(logits, y, label_smoothing=0.1, reduction='none') for y in (labels, labels[partner]))
    return (ratio * own + (1 - ratio) * other).mean()


@pytest.mark.parametrize('backbone', [VIT, TOME], ids=['plain', 'merging'])
@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_a_recorded_pass_is_the_training_pass_and_shows_its_attention(backbone, mode):
    model = getattr(classifier(backbone=dict(backbone, num_merge=0) if backbone is TOME else backbone), mode)()
    images, _ = batch()
    with recorded(model.backbone, images, layer=2) as recording:
        features = model.extract_feat(images)
    scores, tokens = recording.finished()
    torch.testing.assert_close(features, model.extract_feat(images))
    torch.testing.assert_close(tokens[:, 0], features[0])
    expected = score_patches(build_vision_encoder(model.backbone), images, num_merge=0, layer=2)
    torch.testing.assert_close(scores.saliency, expected.saliency)
    assert tokens.requires_grad and not scores.saliency.requires_grad
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_recording_under_autocast_leaves_every_weight_its_gradient():
    model, (images, _) = classifier(), batch()
    with torch.autocast('cpu', torch.bfloat16), recorded(model.backbone, images, layer=2):
        features = model.extract_feat(images)
    features[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.backbone.layers.parameters())


@BATCH_AUGMENTS.register_module(force=True)
class LeftHalf(MaskMixer):
    """Keeps the left half; the final label is read from the mixed pass, and a loss is added."""

    reads_pass = True

    def draw_mask(self, images, partner, scores, generator):
        return torch.tensor([[True, False]]).expand(len(images), 2), (1, 2)

    def after_pass(self, result, seen):
        left = seen.scores.saliency.unflatten(1, seen.scores.grid)[..., : seen.scores.grid[1] // 2].sum((1, 2))
        result.ratio = left / seen.scores.saliency.sum(1)
        return result, dict(token_loss=seen.tokens.square().mean())


@pytest.mark.parametrize('backbone', [VIT, TOME], ids=['plain', 'merging'])
def test_a_mixer_that_reads_the_mixed_pass_relabels_without_a_further_pass(backbone):
    model = classifier(backbone=backbone, train_cfg=dict(augments=dict(type='LeftHalf')))
    images, samples = batch()
    passes = forwards(model)
    losses = model.loss(images, samples)
    assert len(passes) == 1
    result = model.mix_result
    assert not torch.allclose(result.ratio, area_ratio(result.mask))
    expected = soft_cross_entropy(model, result.images, result.mix_scores(torch.eye(5)[:4]))
    torch.testing.assert_close(losses['loss'], expected)
    total, _ = model.parse_losses(losses)
    torch.testing.assert_close(total, losses['loss'] + losses['token_loss'])
    total.backward()
    # For a figure the labels are final as well, and the images are mixed alike.
    shown = model.mix(images, data_samples=samples)
    assert not torch.allclose(shown.ratio, area_ratio(shown.mask))


def test_a_mixer_that_reads_the_pass_is_refused_where_nothing_can_be_read():
    mixer = BATCH_AUGMENTS.build(dict(type='LeftHalf'))
    with pytest.raises(ValueError, match=r"LeftHalf reads its labels .* train with model=dict\(type='MixupClassifier'"):
        mixer(torch.zeros(2, 3, 8, 8), torch.eye(2))


def test_the_label_of_any_mask_follows_the_attention_with_one_option():
    model, (images, _) = classifier(), batch()
    LeftHalf.reads_pass = False
    try:
        area, attention = (BATCH_AUGMENTS.build(dict(type='LeftHalf', ratio=ratio)) for ratio in ('area', 'attention'))
        assert not area.needs_encoder and attention.needs_encoder
        assert mix_batch(area, images).ratio.tolist() == [0.5] * 4
        result = mix_batch(attention, images, model.backbone)
    finally:
        LeftHalf.reads_pass = True
    saliency = score_patches(build_vision_encoder(model.backbone), images).saliency.unflatten(1, result.saliency_grid)
    half = saliency.size(2) // 2
    own, other = saliency[..., :half].sum((1, 2)), saliency[result.partner][..., half:].sum((1, 2))
    torch.testing.assert_close(result.ratio, own / (own + other))
    with pytest.raises(ValueError, match="ratio='area' scores nothing, so remove encoder"):
        BATCH_AUGMENTS.build(dict(type='LeftHalf', encoder=VIT))


def test_clean_loss_alone_is_a_plain_training():
    model, (images, samples) = classifier(train_cfg=None, clean_weight=1.0), batch()
    plain = MODELS.build(dict(type='ImageClassifier', backbone=VIT, head=HEAD))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.loss(images, samples)['clean_loss'], plain.loss(images, samples)['loss'])
    assert isinstance(samples[0], DataSample)
