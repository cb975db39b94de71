"""MergeMix: what it mixes, how it scores, and what it leaves alone."""

import math
import warnings

import pytest
import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import BATCH_AUGMENTS, MODELS
from mmpretrain.structures import DataSample
from tiny_vit import VIT

from mergemix_mm.functional import area_ratio, attention_ratio
from mergemix_mm.models import MergeMix
from mergemix_mm.models.vision_encoders import UnsupportedEncoderError, build_vision_encoder, score_patches


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('mask', ['mergemix', 'topk', 'random', 'inverse'])
@pytest.mark.parametrize('per_image', [False, True])
def test_exactly_floor_of_lambda_patches_are_kept_and_pixels_come_from_both_images(vit, images, mask, per_image):
    before = images.clone()
    mixer = MergeMix(mask=mask, ratio='area', per_image=per_image)
    result = mixer.mix(images, vit, torch.Generator().manual_seed(0))

    assert (result.partner != torch.arange(6)).all()
    counts = result.mask.sum(1)
    assert len(counts.unique()) > 1 if per_image else len(counts.unique()) == 1
    assert torch.equal(result.ratio, counts / 16)
    pixels = result.mask.view(6, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(result.images, torch.where(pixels, images, images[result.partner]))
    assert torch.equal(images, before)
    assert result.clean is images


@pytest.mark.parametrize('img_size', [32, (16, 64)])
def test_images_that_are_not_square_are_mixed_patch_by_patch_in_their_own_grid(img_size):
    # 2 x 8 patches, as many as the 4 x 4 of a square.
    encoder = MODELS.build(VIT | dict(img_size=img_size))
    images = torch.randn(4, 3, 16, 64, generator=torch.Generator().manual_seed(2))
    result = MergeMix(ratio='area').mix(images, encoder, torch.Generator().manual_seed(0))
    pixels = result.mask.view(4, 1, 2, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert pixels.any() and not pixels.all()
    assert torch.equal(result.images, torch.where(pixels, images, images[result.partner]))


def test_inverse_keeps_the_least_salient_patches(vit, images):
    result = MergeMix(mask='inverse').mix(images, vit, torch.Generator().manual_seed(0))
    kept, replaced = result.saliency.masked_fill(~result.mask, -1), result.saliency.masked_fill(result.mask, 2)
    assert 0 < result.mask.sum() < result.mask.numel()
    assert (kept.amax(dim=1) <= replaced.amin(dim=1)).all()


def test_partners_can_be_given(vit, images):
    partner = torch.tensor([1, 0, 0, 0, 5, 4])
    result = MergeMix().mix(images, vit, partner=partner)
    assert torch.equal(result.partner, partner)
    pixels = result.mask.view(6, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(result.images, torch.where(pixels, images, images[partner]))


def test_lambda_is_drawn_anew_for_every_batch(vit, images):
    mixer = MergeMix(ratio='area')
    generator = torch.Generator().manual_seed(0)
    ratios = {float(mixer.mix(images, vit, generator).ratio[0]) for _ in range(20)}
    assert len(ratios) > 5
    assert all(math.isclose(ratio * 16, round(ratio * 16)) for ratio in ratios)


def test_the_most_salient_patches_are_the_ones_kept(vit, images):
    result = MergeMix(num_merge=8).mix(images, vit, torch.Generator().manual_seed(2))
    assert 0 < int(result.mask[0].sum()) < 16
    for saliency, mask in zip(result.saliency, result.mask, strict=True):
        assert saliency[mask].min() >= saliency[~mask].max()


@pytest.mark.parametrize('saliency', ['value_norm', 'mean'])
@torch.no_grad()
def test_another_saliency_chooses_the_patches_and_the_labels(vit, images, saliency):
    vit.eval()
    result = MergeMix(saliency=saliency).mix(images, vit)
    torch.testing.assert_close(
        result.saliency, score_patches(build_vision_encoder(vit), images, saliency=saliency).saliency
    )
    assert not torch.allclose(result.saliency, MergeMix().score(images, vit).saliency, atol=1e-4)
    for row, mask in zip(result.saliency, result.mask, strict=True):
        assert mask.all() or not mask.any() or row[mask].min() >= row[~mask].max()
    torch.testing.assert_close(result.ratio, attention_ratio(result.saliency, result.partner, result.mask))


def test_topk_scores_without_merging_and_random_keeps_whole_groups_first(vit, images):
    topk = MergeMix(mask='topk', num_merge=8)
    assert topk.score(images, vit).num_kept_patches == 16
    random = MergeMix(mask='random', num_merge=10)
    result = random.mix(images, vit, torch.Generator().manual_seed(3))
    groups = random.score(images, vit).groups
    for b in range(6):
        members = groups.index[b, 1:]
        cut = [
            group for group in members.unique() if 0 < result.mask[b, members == group].sum() < (members == group).sum()
        ]
        assert len(cut) <= 1, 'the count p may cut one group, no more'


def test_the_ratio_is_the_share_of_visible_attention_by_default(vit, images):
    result = MergeMix().mix(images, vit)
    torch.testing.assert_close(result.ratio, attention_ratio(result.saliency, result.partner, result.mask))
    assert not torch.allclose(result.ratio, area_ratio(result.mask))


def test_gaussian_ratio_spans_zero_to_one(vit, images):
    ratio = MergeMix(ratio='gaussian').mix(images, vit).ratio
    assert (float(ratio.min()), float(ratio.max())) == (0, 1)


def test_a_generator_makes_mixing_repeatable(vit, images):
    for kwargs in (dict(mask='random'), dict(ratio='gaussian', per_image=True)):
        first, second = (MergeMix(**kwargs).mix(images, vit, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.ratio, second.ratio)


def test_scoring_leaves_the_model_exactly_as_it_was(images):
    model = MODELS.build(VIT | dict(drop_rate=0.5, drop_path_rate=0.5, frozen_stages=1))
    model.train()
    model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not all(modes.values())
    assert not all(grads.values())
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    first, second = (MergeMix(num_merge=4).score(images, model).saliency for _ in range(2))

    assert torch.equal(first, second), 'dropout is off while scoring'
    assert not first.requires_grad
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert grads == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mode_is_put_back_after_an_error(vit):
    vit.train()
    with pytest.raises(ValueError, match='num_merge=99'):
        MergeMix(num_merge=99).mix(torch.randn(2, 3, 32, 32), vit)
    assert all(module.training for module in vit.modules())


def test_bf16_autocast_gives_no_nan_and_does_not_cut_the_weights_off_from_their_gradient(vit, images):
    """Autocast caches low-precision weights: those cached by the scoring pass have no gradient."""

    def gradients(mixer):
        vit.zero_grad()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            if mixer is not None:
                result = mixer.mix(images, vit)
                assert result.images.isfinite().all()
                assert result.saliency.isfinite().all()
                assert result.saliency.dtype == torch.float32
            loss = vit(images)[0].float().square().mean()
        loss.backward()
        return {
            name: parameter.grad.clone() for name, parameter in vit.named_parameters() if parameter.grad is not None
        }

    plain, scored = gradients(None), gradients(MergeMix(num_merge=8))
    assert plain.keys() == scored.keys()
    assert len(plain) > 40
    for name, grad in plain.items():
        assert torch.equal(grad, scored[name]), name


def test_as_batch_augment_it_mixes_labels_by_the_ratio(images):
    mixer = BATCH_AUGMENTS.build(dict(type='MergeMix', encoder=VIT))
    torch.manual_seed(0)
    mixed, scores = mixer(images, torch.eye(6))
    torch.manual_seed(0)
    result = mixer.mix(images)
    assert torch.equal(mixed, result.images)
    torch.testing.assert_close(scores.sum(1), torch.ones(6))
    torch.testing.assert_close(scores.diagonal(), result.ratio)
    single, score = mixer(images[:1], torch.eye(6)[:1])
    assert torch.equal(single, images[:1])
    assert torch.equal(score, torch.eye(6)[:1])


def plain_classifier(augment):
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=VIT,
            head=dict(type='VisionTransformerClsHead', num_classes=5, in_channels=16),
            train_cfg=dict(augments=[augment], probs=[1.0]),
            data_preprocessor=dict(num_classes=5),
        )
    )


def preprocess(model):
    data = dict(
        inputs=[torch.rand(3, 32, 32) for _ in range(4)], data_samples=[DataSample().set_gt_label(i) for i in range(4)]
    )
    return model.data_preprocessor(data, training=True)


def test_in_a_plain_image_classifier_it_needs_an_encoder_and_says_both_ways_out():
    model = plain_classifier(dict(type='MergeMix'))
    assert type(model) is ImageClassifier
    with pytest.raises(ValueError, match=r"(?s)type='MixupClassifier'.*encoder=dict\(type="):
        preprocess(model)


def test_in_a_plain_image_classifier_it_scores_with_a_frozen_encoder_of_its_own():
    model = plain_classifier(dict(type='MergeMix', encoder=VIT))
    encoder = model.data_preprocessor.batch_augments.augments[0].encoder
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any('encoder' in name for name in model.state_dict())
    before = [parameter.clone() for parameter in encoder.parameters()]
    data = preprocess(model)
    model.loss(**data)['loss'].backward()
    assert torch.stack([sample.gt_score for sample in data['data_samples']]).sum(1).allclose(torch.ones(4))
    assert all(torch.equal(*pair) for pair in zip(before, encoder.parameters(), strict=True))
    assert not encoder.training


# As in docs/extend/custom_encoder.md: the class of transformers, or the model of timm, with its options.
SIZE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
ENCODERS = {
    'CLIPVisionModel': dict(SIZE, intermediate_size=32),
    'Dinov2WithRegistersModel': dict(SIZE, num_register_tokens=2),
    'DINOv3ViTModel': dict(SIZE, intermediate_size=32, num_register_tokens=2),
    'vit_tiny_patch16_224': dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2),
    'eva02_tiny_patch14_224': dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2),
}
WITHOUT_MERGING = ['DINOv3ViTModel', 'eva02_tiny_patch14_224']


def trained_encoder(name, folder):
    """An encoder, and the config that loads its weights from a folder."""
    torch.manual_seed(0)
    if name.endswith('Model'):
        cls = getattr(pytest.importorskip('transformers'), name)
        model = cls(cls.config_class(**ENCODERS[name]))
        model.save_pretrained(folder)
        return model, dict(type=f'transformers.{name}.from_pretrained', pretrained_model_name_or_path=str(folder))
    model = pytest.importorskip('timm').create_model(name, **ENCODERS[name])
    torch.save(model.state_dict(), folder / 'weights.pth')
    path = str(folder / 'weights.pth')
    return model, dict(type='timm.create_model', model_name=name, checkpoint_path=path, **ENCODERS[name])


@pytest.mark.parametrize('name', ENCODERS)
def test_encoders_of_transformers_and_timm_are_named_in_the_config_and_keep_their_weights(name, tmp_path, images):
    trained, encoder = trained_encoder(name, tmp_path)
    mixer = MergeMix(encoder=encoder, num_merge=0)
    mixed, _ = mixer(images, torch.eye(6))
    assert mixed.shape == images.shape
    for key, value in mixer.encoder.state_dict().items():
        assert torch.equal(value, trained.state_dict()[key]), key


@pytest.mark.parametrize('name', ENCODERS)
def test_an_encoder_of_its_own_merges_half_of_the_patches_or_none_with_one_warning(name, tmp_path, images):
    model, _ = trained_encoder(name, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        mixer = MergeMix(encoder=model)
        mixer.mix(images), mixer.mix(images)
    about_merging = [str(one.message) for one in caught if 'merge' in str(one.message)]
    assert len(about_merging) == (name in WITHOUT_MERGING)
    scores = mixer.score(images)
    assert scores.num_kept_patches == (16 if name in WITHOUT_MERGING else 8)
    prefix = scores.num_prefix_tokens  # Class token and registers: never merged.
    assert torch.equal(scores.groups.index[:, :prefix], torch.arange(prefix).expand(6, -1))
    assert prefix == (3 if name in ('Dinov2WithRegistersModel', 'DINOv3ViTModel') else 1)
    assert (scores.groups.size[:, :prefix] == 1).all()
    if name in WITHOUT_MERGING:
        with pytest.raises(ValueError, match='num_merge=8: tokens .*rotary positions.*set num_merge=0'):
            MergeMix(encoder=model, num_merge=8)


@pytest.mark.parametrize('options', [dict(mask='random'), dict(inflection=1.0), dict(prop_attn=False)])
def test_without_merging_random_keeps_single_patches_and_the_shape_of_the_schedule_does_not_matter(
    options, tmp_path, images
):
    model, _ = trained_encoder('DINOv3ViTModel', tmp_path)
    first, second = (
        MergeMix(encoder=model, num_merge=0, per_image=True, **kwargs).mix(
            images, generator=torch.Generator().manual_seed(5)
        )
        for kwargs in ({}, options)
    )
    assert torch.equal(first.saliency, second.saliency)
    same = torch.equal(first.mask.sort(dim=1).values, second.mask.sort(dim=1).values)
    assert torch.equal(first.mask, second.mask) == same == ('mask' not in options)


def test_the_encoder_config_is_not_written_to():
    cfg = dict(VIT, out_indices=[-1])
    MergeMix(encoder=cfg)
    assert cfg == dict(VIT, out_indices=[-1])


def test_an_encoder_that_cannot_score_is_refused_before_training():
    with pytest.raises(UnsupportedEncoderError, match='ResNet'):
        MergeMix(encoder=dict(type='ResNet', depth=18))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(alpha=0), 'alpha=0 must be > 0'),
        (dict(alpha=-1.0), 'alpha=-1.0'),
        (dict(alpha=float('inf')), 'alpha=inf must be > 0 and finite'),
        (dict(num_merge=8.0), 'num_merge=8.0 must be an int'),
        (dict(layer=0), 'layer=0 must be an int >= 1'),
        (dict(num_merge=-1), 'num_merge=-1'),
        (dict(inflection=2), 'inflection=2'),
        (dict(score_scale=0), r'score_scale=0 must be in \(0, 1\]'),
        (dict(score_scale=0.5, mask='random'), "score_scale=0.5 must be 1 with mask='random'"),
        (dict(mask='best'), r"mask='best' must be one of \('mergemix', 'topk', 'random', 'inverse'\)"),
        (
            dict(saliency='value'),
            r"MergeMix: saliency='value' must be one of \('attention', 'value_norm', 'mean', 'received'\)",
        ),
        (dict(ratio='mean'), r"ratio='mean' must be one of \('area', 'attention', 'gaussian'\)"),
    ],
)
def test_bad_arguments_are_errors_that_name_the_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MergeMix(**kwargs)


def test_images_that_do_not_fit_the_patches_are_an_error(vit):
    with pytest.raises(ValueError, match='30 x 30 pixels'):
        MergeMix().mix(torch.randn(2, 3, 30, 30), vit)


def test_rectangular_images_are_mixed(vit):
    result = MergeMix().mix(torch.randn(3, 3, 16, 40), vit)
    assert result.grid == (2, 5)
    assert result.images.shape == (3, 3, 16, 40)
