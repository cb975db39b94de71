"""``randomness=dict(deterministic=True)``: every step computes, and twice the same bits."""

import numpy as np
import pytest
import tiny_sphinx
import tiny_vlms
import torch
from mmengine.registry import MODELS
from on_device import moved
from test_cuda.test_mixing import VIT, augment, classifier, pictures
from test_models.test_tuners.test_unified_tuner import align, batch_of
from test_models.test_tuners.test_unified_tuner import build as build_unified
from test_models.test_tuners.test_vlm_tuner import MIXERS, SIMPO, samples
from test_models.test_tuners.test_vlm_tuner import build as build_tuner


@pytest.fixture(autouse=True)
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def classifier_step(device, **backbone):
    model = classifier(augment('MergeMix'), device, backbone=dict(VIT, **backbone))
    return model, model.data_preprocessor(pictures(32), training=True)


def sphinx_step(device):
    """All encoders train: their maps are resampled with gradients."""
    cfg = tiny_sphinx.sphinx_config(True, trainable=('vision_tower', 'projector', 'language_model'))
    cfg['backbone']['encoders'] = tiny_sphinx.encoders(frozen=False)
    tuner = MODELS.build(dict(type='VLMTuner', vlm=cfg)).to(device)
    records = [([tiny_vlms.random_image(40, width, width)], 'what is it?', 'ab') for width in (40, 15)]
    return tuner, dict(inputs=moved(tiny_sphinx.batch(tiny_sphinx.processor(True), records)['inputs'], device))


STEPS = {
    'classifier': classifier_step,
    'tome': lambda device: classifier_step(device, type='ToMeVisionTransformer', num_merge=6, out_type='avg_featmap'),
    'simpo': lambda device: (
        build_tuner('llava', SIMPO, MIXERS['MergeMix']).to(device),
        dict(inputs=moved(tiny_vlms.tiny_batch('llava', samples()), device)),
    ),
    'sphinx': sphinx_step,
    **{
        f'{family} {task}': lambda device, family=family, task=task: (
            align(build_unified(family)).to(device),
            dict(inputs=moved(batch_of(family, task), device)),
        )
        for family in ('janus', 'emu3')
        for task in ('gen', 'und')
    },
}


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', STEPS)
def test_a_step_gives_the_same_bits_twice(kind, precision, device):
    model, data = STEPS[kind](device)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        model.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == 'bfloat16'):
            losses = model(**data, mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        found.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
    assert found[0] and all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize('size', [(6, 6), (16, 12), (5, 20)])
def test_maps_are_resampled_with_gradients(size, device):
    """torch's own interpolation with antialias has no deterministic gradient on CUDA."""
    from mergemix_mm.functional import resize

    x = torch.randn(2, 3, 9, 10, device=device, requires_grad=True)
    found = resize(x, size)
    weight = torch.randn_like(found)
    gradient = torch.autograd.grad((found * weight).sum(), x)[0]
    torch.use_deterministic_algorithms(False)
    plain = x.detach().cpu().requires_grad_()
    expected = torch.nn.functional.interpolate(plain, size, mode='bilinear', antialias=True)
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad((expected * weight.cpu()).sum(), plain)[0]
    torch.testing.assert_close(gradient.cpu(), wanted, atol=1e-5, rtol=1e-5)
