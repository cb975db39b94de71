"""OACutMix: labels by what can be seen of the objects; SaliencyMix: the box around what is salient."""

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import BATCH_AUGMENTS, MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from tiny_vit import VIT

from mergemix_mm.functional import attention_ratio, fine_grained_saliency, spectral_residual
from mergemix_mm.models import OACutMix, SaliencyMix, mix_canvases
from mergemix_mm.models.batch_augments import TrainingBatch


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def samples(masks, key='gt_seg_map'):
    found = []
    for label, mask in enumerate(masks):
        found.append(DataSample().set_gt_label(label))
        found[-1].set_field(mask, key)
    return found


def classifier(**augment):
    torch.manual_seed(0)
    head = dict(type='VisionTransformerClsHead', num_classes=5, in_channels=16)
    train_cfg = dict(augments=dict(type='OACutMix', **augment))
    return MODELS.build(dict(type='MixupClassifier', backbone=VIT, head=head, train_cfg=train_cfg))


def corner_masks(size=32):
    """The object of image 0 fills the upper left, of 1 the upper right quarter; image 2 has two pixels, 3 has none."""
    masks = np.zeros((4, size, size), dtype=np.uint8)
    masks[0, : size // 2, : size // 2] = 1
    masks[1, : size // 2, size // 2 :] = 255
    masks[2, 0, :2] = 7
    return masks


@pytest.mark.parametrize('relative', [False, True])
def test_the_label_is_the_visible_area_of_each_object(images, relative):
    """Against loops over pixels, on hand-made masks and partners."""
    mixer = BATCH_AUGMENTS.build(dict(type='OACutMix', masks='gt_seg_map', relative=relative, per_image=True))
    masks, partner = corner_masks(), torch.tensor([1, 0, 3, 2])
    scores = mixer.score_batch(TrainingBatch(None, images, torch.eye(4), samples(masks)))
    for seed in range(5):
        result = mixer.mix_scored(images, scores, torch.Generator().manual_seed(seed), partner)
        own = result.mask.view(4, 32, 32).numpy()
        for i, j in enumerate(partner.tolist()):
            first, second = ((masks[i] > 0) & own[i]).sum(), ((masks[j] > 0) & ~own[i]).sum()
            if relative:
                first, second = first / max((masks[i] > 0).sum(), 1), second / max((masks[j] > 0).sum(), 1)
            expected = first / (first + second) if first + second else own[i].mean()
            assert result.ratio[i] == pytest.approx(expected, abs=1e-6), (seed, i)
        assert torch.equal(result.images, torch.where(result.mask.view(4, 1, 32, 32), images, images[partner]))


def test_without_masks_the_attention_on_the_box_is_the_label(vit, images):
    result = OACutMix().mix(images, vit, torch.Generator().manual_seed(3))
    share = result.mask.view(4, 4, 8, 4, 8).float().mean((2, 4)).flatten(1)
    assert 0 < result.mask.sum() < result.mask.numel()
    torch.testing.assert_close(result.ratio, attention_ratio(result.saliency, result.partner, share))
    assert (result.grid, result.saliency_grid) == ((32, 32), (4, 4))


def test_the_ratio_by_area_is_plain_cutmix_and_needs_no_encoder(images):
    mixer = OACutMix(ratio='area')
    assert not mixer.needs_encoder
    result = mixer.mix(images, generator=torch.Generator().manual_seed(3))
    assert torch.equal(result.ratio, result.mask.float().mean(1))
    assert len(result.mask.unique(dim=0)) == 1, 'one box serves the batch'
    mixed, labels = mixer(images, torch.eye(4))
    assert mixed.shape == images.shape and torch.allclose(labels.sum(1), torch.ones(4))


def test_masks_go_through_a_pipeline_with_their_images():
    """The mask is drawn into the image; afterwards both must still agree."""
    both = dict(img=['img', 'gt_seg_map'], img_shape=['img_shape', ...])
    broadcast = dict(type='TransformBroadcaster', mapping=both, auto_remap=True, share_random_params=True)
    crop = dict(type='RandomCrop', crop_size=24, padding=4)
    pipeline = [
        dict(broadcast, transforms=[crop]),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs', algorithm_keys=('gt_seg_map',)),
    ]
    init_default_scope('mmpretrain')
    pipeline = [TRANSFORMS.build(step) for step in pipeline]
    model, batch = classifier(masks='gt_seg_map'), []
    np.random.seed(0)
    for mask in corner_masks():
        data = dict(img=np.repeat(mask[..., None], 3, axis=2), img_shape=(32, 32), gt_label=1, gt_seg_map=mask.copy())
        for step in pipeline:
            data = step(data)
        batch.append(data)
    inputs, data_samples = torch.stack([one['inputs'] for one in batch]), [one['data_samples'] for one in batch]
    assert inputs.shape == (4, 3, 24, 24)
    result = model.mix(inputs.float(), data_samples=data_samples)
    # The mixed image shows the objects, so their pixels can be counted in it.
    own = result.mask.view(4, 24, 24)
    seen, first = result.images[:, 0] > 0, (inputs[:, 0] > 0) & own
    total = seen.sum((1, 2))
    expected = torch.where(total > 0, first.sum((1, 2)) / total.clamp(min=1), own.float().mean((1, 2)))
    torch.testing.assert_close(result.ratio, expected)
    assert first.any()


def test_a_training_step_with_the_masks_of_the_cluttered_digits():
    pytest.importorskip('sklearn')
    from mergemix_mm.toy import DigitsDataset

    pack = dict(type='PackInputs', algorithm_keys=('gt_mask',))
    data = DigitsDataset(clutter=True, train_per_class=1, pipeline=[pack])
    batch = [data[i] for i in (0, 1, 2, 3)]
    model = classifier(masks='gt_mask')
    model.head.num_classes = 10
    model.head.layers.head = torch.nn.Linear(16, 10)
    inputs = torch.stack([one['inputs'] for one in batch]).float()
    losses = model.loss(inputs, [one['data_samples'] for one in batch])
    losses['loss'].backward()
    result = model.mix_result
    masks = torch.stack([torch.from_numpy(one['data_samples'].gt_mask).flatten() for one in batch])
    own, other = (masks & result.mask).sum(1), (masks[result.partner] & ~result.mask).sum(1)
    torch.testing.assert_close(result.ratio, own / (own + other))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(masks='gt_seg_map', ratio='area'), "masks='gt_seg_map' decides the labels; remove ratio and encoder"),
        (dict(masks='gt_seg_map', encoder=VIT), 'remove ratio and encoder'),
        (dict(masks='gt_seg_map', num_merge=8), 'decides the labels; remove num_merge=8'),
        (dict(relative=True), 'relative=True has no effect without masks'),
        (dict(ratio='gaussian'), r"ratio='gaussian' must be one of \('area', 'attention'\)"),
    ],
)
def test_options_that_contradict_each_other_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        OACutMix(**kwargs)


def test_masks_that_are_missing_or_of_another_size_are_named(images):
    model = classifier(masks='gt_seg_map')
    with pytest.raises(ValueError, match=r"a sample has no gt_seg_map, only .*algorithm_keys=\('gt_seg_map',\)"):
        model.loss(images, samples(corner_masks(), 'other'))
    with pytest.raises(ValueError, match=r'gt_seg_map of a sample is \[16, 16\], and its image is \[32, 32\]'):
        model.loss(images, samples(corner_masks(16)))


def test_masks_are_read_in_the_mixup_classifier_alone(images):
    mixer = OACutMix(masks='gt_seg_map')
    with pytest.raises(ValueError, match='reads gt_seg_map of the data samples: train with .*MixupClassifier'):
        mixer(images, torch.eye(4))
    with pytest.raises(ValueError, match='reads gt_seg_map of the data samples'):
        mix_canvases(mixer, list(images), torch.arange(4))


def test_images_of_other_sizes_than_that_of_the_encoder_get_the_same_box(vit):
    canvases = [torch.randn(3, *size) for size in ((32, 32), (48, 64), (40, 40))]
    result = mix_canvases(OACutMix(), canvases, torch.arange(3), vit)
    box = result.mask[1].view(1, 1, 32, 32).float()
    kept = torch.nn.functional.interpolate(box, (48, 64))[0, 0].bool()
    assert torch.equal(result.images[1][:, kept], canvases[1][:, kept]) and not kept.all()


@pytest.mark.parametrize('static_saliency', ['fine_grained', 'spectral_residual'])
def test_the_box_lies_around_the_most_salient_pixel_of_the_partner(images, static_saliency, monkeypatch):
    images, partner, mixer = (
        images[:3, :, :, :20],
        torch.tensor([1, 2, 0]),
        SaliencyMix(static_saliency=static_saliency),
    )
    monkeypatch.setattr(mixer, 'draw_lambda', lambda size, _: torch.full((size,), 0.75, dtype=torch.float64))
    result = mixer.mix(images, partner=partner)
    maps = dict(fine_grained=fine_grained_saliency, spectral_residual=spectral_residual)[static_saliency](images)
    for i, j in enumerate(partner.tolist()):
        row, column = divmod(int(maps[j].argmax()), 20)
        expected = torch.ones(32, 20, dtype=torch.bool)
        expected[max(row - 8, 0) : row + 8, max(column - 5, 0) : column + 5] = False
        assert torch.equal(result.mask[i].view(32, 20), expected), i
        assert torch.equal(result.images[i, :, row, column], images[j, :, row, column])


def test_one_box_can_serve_the_batch_as_the_authors_code_does(images):
    partner, generator = torch.tensor([1, 2, 3, 0]), torch.Generator().manual_seed(0)
    shared = SaliencyMix(shared_box=True).mix(images, generator=generator, partner=partner).mask
    single = SaliencyMix().mix(images, generator=generator.manual_seed(0), partner=partner).mask
    assert torch.equal(shared, single[:1].expand(4, -1)) and not torch.equal(single[0], single[1])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(static_saliency='sobel'),
            r"static_saliency='sobel' must be one of \('fine_grained', 'spectral_residual'\)",
        ),
        (dict(shared_box=True, per_image=True), 'remove per_image=True'),
    ],
)
def test_saliencymix_names_what_it_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SaliencyMix(**kwargs)
