"""Encoders that score, the mixers, and the models of images, on a device."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from mmpretrain.registry import BATCH_AUGMENTS, MODELS
from mmpretrain.structures import DataSample
from on_device import PRECISIONS, assert_close_to_cpu, moved, optim_wrapper, train_step
from test_models.test_vision_encoders.test_adapters import MMPRETRAIN, SMALL, mmpretrain_vit, randomised

from mergemix_mm.models import MergeMix
from mergemix_mm.models.vision_encoders import build_vision_encoder, score_patches

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32),
    img_size=32,
    patch_size=8,
)
HEAD = dict(type='VisionTransformerClsHead', num_classes=5, in_channels=16)
OTHERS = {
    'clip': ('CLIPVisionModel', 'CLIPVisionConfig', dict(intermediate_size=32)),
    'siglip': ('SiglipVisionModel', 'SiglipVisionConfig', dict(intermediate_size=32)),
    'dinov2': ('Dinov2Model', 'Dinov2Config', dict(mlp_ratio=2)),
}
ENCODERS = [f'mmpretrain.{name}' for name in MMPRETRAIN] + [f'transformers.{name}' for name in OTHERS] + ['timm.vit']


def encoder(name):
    """A random model, and images of its size."""
    library, name = name.split('.')
    size = 28
    if library == 'mmpretrain':
        model, size = mmpretrain_vit(name)
    elif library == 'transformers':
        import transformers

        cls, config, options = OTHERS[name]
        model = randomised(getattr(transformers, cls)(getattr(transformers, config)(**SMALL, **options)))
    else:
        timm = pytest.importorskip('timm')
        sizes = dict(img_size=28, patch_size=7, embed_dim=16, depth=3, num_heads=2, num_classes=0)
        model = randomised(timm.models.VisionTransformer(**sizes))
    return model, torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def augments():
    """Names of the mixers of this package and of MMPretrain."""
    own = [name for name, cls in BATCH_AUGMENTS.module_dict.items() if cls.__module__.startswith('mergemix_mm')]
    return ['Mixup', 'CutMix', 'ResizeMix', *sorted(own)]


def augment(name, **options):
    return dict(type=name, **(dict(alpha=1.0) if name in ('Mixup', 'CutMix', 'ResizeMix') else {}), **options)


def classifier(mixers, device, **options):
    torch.manual_seed(0)
    options = dict(backbone=deepcopy(VIT), head=HEAD, train_cfg=dict(augments=mixers)) | options
    preprocessor = dict(type='ClsDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3, num_classes=5)
    model = MODELS.build(dict(type='MixupClassifier', data_preprocessor=preprocessor, **options))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(device).train()


def pictures(count=6):
    images = torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    samples = [DataSample().set_gt_label(i % 5) for i in range(count)]
    return dict(inputs=list(images.to(torch.uint8)), data_samples=samples)


@pytest.mark.parametrize('name', ENCODERS)
def test_encoders_score_as_on_the_cpu(name, device):
    model, images = encoder(name)
    expected = score_patches(build_vision_encoder(model), images)
    with torch.no_grad():
        found = score_patches(build_vision_encoder(model.to(device)), images.to(device))
    assert_close_to_cpu(found.groups, expected.groups, device)
    assert_close_to_cpu(found.saliency, expected.saliency.detach(), device, atol=1e-5, rtol=1e-3)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype):
            half = score_patches(build_vision_encoder(model), images.to(device), num_merge=0)
        with torch.no_grad():
            full = score_patches(build_vision_encoder(model), images.to(device), num_merge=0)
        assert half.saliency.dtype == torch.float32 and half.saliency.isfinite().all()
        torch.testing.assert_close(half.saliency, full.saliency, atol=0.1, rtol=0.3)
    low = model.to(torch.bfloat16)
    with torch.no_grad():
        assert score_patches(build_vision_encoder(low), images.to(device)).saliency.isfinite().all()


@pytest.mark.parametrize('ratio', ['area', 'attention', 'gaussian'])
@pytest.mark.parametrize('mask', ['mergemix', 'topk', 'random', 'inverse'])
def test_mergemix_with_one_generator_mixes_the_same_on_every_device(mask, ratio, device):
    model = MODELS.build(VIT)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(6, 3, 32, 32)
    mixer = MergeMix(mask=mask, ratio=ratio, per_image=True)
    expected = mixer.mix(images, model, torch.Generator().manual_seed(0))
    found = mixer.mix(images.to(device), model.to(device), torch.Generator().manual_seed(0))
    assert_close_to_cpu(found, expected, device, atol=1e-5, rtol=1e-3)
    mixer.mix(images.to(device), model, torch.Generator(device).manual_seed(0))
    assert_close_to_cpu(
        mixer.mix(images.to(device), model).mix_scores(torch.eye(6, device=device)).sum(1), torch.ones(6), device
    )


def test_an_encoder_of_its_own_follows_the_images(device):
    mixer = MergeMix(encoder=deepcopy(VIT))
    assert mixer.mix(torch.randn(4, 3, 32, 32)).images.device.type == 'cpu'
    assert mixer.mix(torch.randn(4, 3, 32, 32, device=device)).images.device.type == device.type
    assert {one.device.type for one in mixer.encoder.parameters()} == {device.type}


@pytest.mark.parametrize('name', augments())
def test_every_mixer_trains_a_classifier(name, device, monkeypatch):
    model = classifier(augment(name), device)
    for precision in PRECISIONS:
        losses = train_step(model, pictures(), optim_wrapper(model, precision, device, monkeypatch))
        assert 0 <= losses['ratio_mean'] <= 1 and losses['loss'] > 0
        result = model.mix_result
        for part in (result.images, result.partner, result.ratio, result.clean):
            assert part.device.type == device.type
    assert result.images.dtype == torch.float32


def test_base_augment_and_an_encoder_of_its_own_train(device, monkeypatch):
    model = classifier(augment('MergeMix', encoder=deepcopy(VIT)), device, base_augment=augment('Mixup'))
    losses = train_step(model, pictures(), optim_wrapper(model, 'float16', device, monkeypatch))
    assert losses['base_loss'] > 0


def test_the_loss_of_a_mixed_batch_is_that_of_the_cpu(device, monkeypatch):
    """Where the draws are the same: mask and partner come from the CPU's generator, and lambda does always."""
    values = []
    for place in (torch.device('cpu'), device):
        model = classifier(augment('MergeMix'), place)
        mix = model.augments.augments[0].mix
        generator = torch.Generator().manual_seed(0)
        monkeypatch.setattr(MergeMix, 'mix', lambda self, *args, mix=mix, generator=generator: mix(*args, generator))
        data = model.data_preprocessor(pictures(), training=True)
        loss = model(**data, mode='loss')['loss']
        loss.backward()
        values.append((loss.detach(), [one.grad for one in model.parameters() if one.grad is not None]))
        monkeypatch.undo()
    assert_close_to_cpu(values[1], values[0], device, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize('out_type', ['cls_token', 'featmap', 'avg_featmap'])
def test_tome_is_that_of_the_cpu_and_trains_in_half_precision(out_type, device):
    model = randomised(MODELS.build(dict(VIT, type='ToMeVisionTransformer', num_merge=6, out_type=out_type)))
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)[0].detach()
    found = model.to(device)(images.to(device))[0]
    assert_close_to_cpu(found, expected, device, atol=1e-3, rtol=1e-3)
    model.train()
    for dtype in (torch.bfloat16, torch.float16):
        model.zero_grad()
        with torch.autocast(device.type, dtype=dtype):
            model(images.to(device))[0].float().square().mean().backward()
        assert all(one.grad is not None and one.grad.isfinite().all() for one in model.layers.parameters())


def test_predictions_and_metrics_take_tensors_of_the_device(device):
    from mergemix_mm.evaluation import CalibrationError

    model = classifier(augment('MergeMix'), device).eval()
    found = model.val_step(pictures())
    metric = CalibrationError()
    metric.process(None, [sample.to_dict() for sample in moved(found, device)])
    assert np.isfinite(list(metric.compute_metrics(metric.results).values())).all()


def test_a_mix_of_a_batch_on_the_device_is_drawn(device):
    from mergemix_mm.visualization.mixed_samples import draw_mixed_samples

    model = classifier(augment('MergeMix'), device)
    data = model.data_preprocessor(pictures(), training=True)
    model(**data, mode='loss')
    figure = draw_mixed_samples(model.mix_result, mean=torch.zeros(3, device=device), std=[255.0] * 3)
    assert figure.ndim == 3 and figure.std() > 0
