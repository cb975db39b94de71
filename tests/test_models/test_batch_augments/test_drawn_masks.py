"""SmoothMix, GridMix and FMix, and what all mixers with masks on the pixels have in common."""

import pytest
import torch
from mmpretrain.registry import BATCH_AUGMENTS, MODELS
from mmpretrain.structures import DataSample
from tiny_vit import VIT

from mergemix_mm.functional import attention_ratio
from mergemix_mm.models import FMix, GridMix, SmoothMix, mix_canvases

AUGMENTS = [
    dict(type='OACutMix', ratio='area'),
    dict(type='SaliencyMix'),
    dict(type='SaliencyMix', static_saliency='spectral_residual', shared_box=True),
    dict(type='SmoothMix'),
    dict(type='GridMix'),
    dict(type='GridMix', mask='holes'),
    dict(type='FMix'),
    dict(type='AttentiveMix', encoder=VIT),
    dict(type='AttentiveMix', encoder=VIT, num_cells=None, attended='own'),
]


def name(augment):
    return '-'.join(str(value) for value in augment.values() if value is not VIT)


every = pytest.mark.parametrize('augment', AUGMENTS, ids=name)
without_scores = pytest.mark.parametrize('augment', [a for a in AUGMENTS if 'encoder' not in a], ids=name)


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@every
def test_pixels_and_labels_are_those_of_the_mask(augment, images):
    mixer, before = BATCH_AUGMENTS.build(augment), images.clone()
    first, second, *others = (mixer.mix(images, generator=seeded(seed)) for seed in (0, 0, 1, 2, 3, 4))
    mask = first.mask.view(4, 1, *first.grid)
    assert first.grid == (32, 48)
    expected = torch.where(mask == 1, images, images[first.partner])
    expected = torch.lerp(images[first.partner], images, mask) if mask.is_floating_point() else expected
    assert torch.equal(first.images, expected)
    torch.testing.assert_close(first.ratio, first.mask.float().mean(1))
    assert ((first.ratio > 0) & (first.ratio < 1)).all()
    assert torch.equal(first.images, second.images)
    assert not all(torch.equal(first.images, other.images) for other in others)
    assert torch.equal(images, before)
    mixed, labels = mixer(images, torch.eye(4))
    assert mixed.shape == images.shape and torch.allclose(labels.sum(1), torch.ones(4))


@without_scores
def test_the_attention_of_an_encoder_can_make_the_label(augment, images):
    mixer = BATCH_AUGMENTS.build(augment | dict(ratio='attention', encoder=VIT))
    result = mixer.mix(images, generator=seeded())
    share = result.mask.float().view(4, 4, 8, 6, 8).mean((2, 4)).flatten(1)
    torch.testing.assert_close(result.ratio, attention_ratio(result.saliency, result.partner, share))


@without_scores
def test_a_mask_for_each_image_or_one_for_the_batch(augment, images):
    mixer = BATCH_AUGMENTS.build(augment)
    one_each = 'Saliency' in augment['type'] and 'shared_box' not in augment
    assert len(mixer.mix(images, generator=seeded()).mask.unique(dim=0)) == (4 if one_each else 1)
    if 'shared_box' not in augment:
        mixer = BATCH_AUGMENTS.build(augment | dict(per_image=True))
        assert len(mixer.mix(images, generator=seeded()).mask.unique(dim=0)) == 4


@every
def test_one_step_in_the_mixup_classifier(augment):
    torch.manual_seed(0)
    head = dict(type='VisionTransformerClsHead', num_classes=5, in_channels=16)
    augment = {key: value for key, value in augment.items() if key != 'encoder'}
    cfg = dict(type='MixupClassifier', backbone=VIT, head=head, train_cfg=dict(augments=augment))
    model = MODELS.build(cfg)
    losses = model.loss(torch.randn(4, 3, 32, 32), [DataSample().set_gt_label(i) for i in range(4)])
    losses['loss'].backward()
    assert losses['loss'].isfinite() and model.backbone.cls_token.grad is not None
    torch.testing.assert_close(losses['ratio_mean'], model.mix_result.mask.float().mean())


@every
def test_images_of_several_sizes_are_mixed_at_the_size_of_the_encoder_or_at_their_own(augment, vit):
    augment = {key: value for key, value in augment.items() if key != 'encoder'}
    canvases = [torch.randn(3, *size) for size in ((32, 32), (48, 64), (48, 64), (40, 41))]
    result = mix_canvases(BATCH_AUGMENTS.build(augment), canvases, torch.arange(4), vit)
    assert result.mixed.all() and ((result.ratio > 0) & (result.ratio < 1)).all()
    assert [image.shape for image in result.images] == [canvas.shape for canvas in canvases]
    assert all(not torch.equal(image, canvas) for image, canvas in zip(result.images, canvases, strict=True))


def test_the_width_of_the_spot_is_drawn_evenly_from_its_range():
    mixer = SmoothMix(sigma=(0.1, 0.3), per_image=True)
    mask = mixer.draw_pixels(600, (40, 60), torch.device('cpu'), seeded())
    # A pixel that is d away from the centre, where the mask is 0, keeps 1 - exp(-d^2 / (2 sigma^2)).
    peak = mask.flatten(1).argmin(1)
    row, column = peak // 60, peak % 60
    beside = torch.where(column > 0, mask[torch.arange(600), row, column - 1], mask[torch.arange(600), row, 1])
    sigma = (-0.5 / (1 - beside.double()).log()).sqrt() / 40
    assert sigma.min() >= 0.0999 and sigma.max() <= 0.3001
    assert sigma.mean().item() == pytest.approx(0.2, abs=0.01)


def test_the_region_of_the_holes_lies_inside_the_image_and_covers_half_of_it_or_more():
    mixer = GridMix(mask='holes', num_cells=8, per_image=True)
    holes = ~mixer.draw_pixels(300, (64, 48), torch.device('cpu'), seeded())
    assert holes.flatten(1).any(1).all()
    sides = [holes.any(dim=axis).float().sum(1) for axis in (2, 1)]  # Rows and columns that any hole touches.
    assert (sides[0] <= 64).all() and (sides[1] <= 48).all()
    bounds = []
    for axis, side in ((2, 64), (1, 48)):
        touched = holes.any(dim=axis).float()
        bounds.append(side - touched.argmax(1) - touched.flip(1).argmax(1))
    # The last hole ends before its cell does, by less than a cell.
    area = bounds[0] * bounds[1] / (64 * 48)
    assert area.max() > 0.8 and area.mean().item() == pytest.approx(0.65, abs=0.1)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: SmoothMix(alpha=1.0), 'draws the width of the spot and no lambda; remove alpha'),
        (lambda: SmoothMix(sigma=(0.5, 0.25)), r'sigma=\(0.5, 0.25\) must be two numbers > 0, the smaller one first'),
        (lambda: SmoothMix(sigma=0.3), 'sigma=0.3 must be two numbers'),
        (lambda: GridMix(mask='rings'), "mask='rings' must be 'cells' or 'holes'"),
        (lambda: GridMix(num_cells=0), r'num_cells=\(0, 0\) must be two whole numbers >= 1'),
        (lambda: GridMix(num_cells=(2.5, 4)), 'num_cells'),
        (lambda: FMix(decay=-1), 'decay=-1 must be >= 0'),
        (lambda: FMix(encoder=VIT), "ratio='area' scores nothing, so remove encoder"),
        (lambda: FMix(layer=3), "ratio='area' scores nothing, so remove layer=3 or set ratio='attention'"),
        (lambda: GridMix(saliency='mean'), "scores nothing, so remove saliency='mean'"),
    ],
)
def test_bad_arguments_are_errors_that_name_the_key(make, message):
    with pytest.raises(ValueError, match=message):
        make()
