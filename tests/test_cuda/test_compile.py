"""``torch.compile`` of what trains: the numbers stay."""

import os

import numpy as np
import pytest
import tiny_vlms
import torch
from on_device import moved
from test_cuda.test_mixing import VIT, augment, classifier, pictures
from test_models.test_tuners.test_unified_tuner import align, batch_of
from test_models.test_tuners.test_unified_tuner import build as build_unified
from test_models.test_tuners.test_vlm_tuner import build as build_tuner
from test_models.test_tuners.test_vlm_tuner import samples

from mergemix_mm import functional as fn


@pytest.fixture
def compiler(device):
    """Tracing a whole model takes minutes on two cores."""
    if device.type == 'cpu' and 'MERGEMIX_COMPILE_ON_CPU' not in os.environ:
        pytest.skip('takes minutes on a CPU (MERGEMIX_COMPILE_ON_CPU=1 runs it)')


def compiled(function, device):
    """By the compiler of the device; on a CPU traced only, gradients included, since its compiler takes minutes."""
    torch._dynamo.reset()
    return torch.compile(function, backend='inductor' if device.type == 'cuda' else 'aot_eager')


def losses_and_gradients(model, forward, data):
    torch.manual_seed(0)
    np.random.seed(0)
    model.zero_grad()
    losses = forward(**data, mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    grads = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
    return {name: value.detach() for name, value in losses.items()}, grads


def assert_same_step(model, data, device):
    expected, wanted = losses_and_gradients(model, model.forward, data)
    found, gradients = losses_and_gradients(model, compiled(model.forward, device), data)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)
    assert (gradients - wanted).norm() < 1e-3 * wanted.norm()


def test_merging_and_mixing_compile_into_one_graph(device):
    def step(tokens, images, partner, saliency):
        groups = fn.TokenGroups.identity(len(tokens), tokens.size(1), tokens.device)
        x, groups = fn.merge_tokens(tokens, groups, fn.bipartite_soft_matching(tokens, 20, 1))
        mask = saliency > saliency.median(dim=1, keepdim=True).values
        mixed = fn.mix_images(images, partner, mask, (4, 4))
        return groups.restore(x), mixed, fn.attention_ratio(saliency, partner, mask)

    tokens, images = torch.randn(2, 65, 16, device=device), torch.randn(2, 3, 32, 32, device=device)
    arguments = tokens, images, torch.tensor([1, 0], device=device), torch.rand(2, 16, device=device)
    torch._dynamo.reset()
    backend = 'inductor' if device.type == 'cuda' else 'aot_eager'
    found = torch.compile(step, backend=backend, fullgraph=True)(*arguments)
    for got, want in zip(found, step(*arguments), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('backend', ['fused', 'eager'])
def test_recorded_attention_and_its_loss_compile_into_one_graph(backend, device):
    def step(query, key, value, queries, keys, target, delta):
        options = dict(is_causal=True, backend=backend)
        output, intensity = fn.attention_with_intensity(query, key, value, queries, keys, **options)
        return output.square().mean() + fn.aia_loss(intensity[None], target, delta)

    tensors = [torch.randn(2, 4, 33, 16, device=device, requires_grad=True) for _ in range(3)]
    places = torch.arange(33, device=device).expand(2, 33)
    rest = places > 16, places <= 16, *torch.full((2, 1), 0.3, device=device)
    torch._dynamo.reset()
    name = 'inductor' if device.type == 'cuda' else 'aot_eager'
    losses = [one(*tensors, *rest) for one in (step, torch.compile(step, backend=name, fullgraph=True))]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for pair in zip(*(torch.autograd.grad(loss, tensors) for loss in losses), strict=True):
        torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-3)


def test_a_classifier_compiles(device):
    shallow = dict(VIT, arch=dict(VIT['arch'], num_layers=2))
    model = classifier(augment('MergeMix'), device, backbone=shallow)
    assert_same_step(model, model.data_preprocessor(pictures(), training=True), device)


def test_a_tuner_compiles(device, compiler):
    data = dict(inputs=moved(tiny_vlms.tiny_batch('llava', samples()), device))
    assert_same_step(build_tuner('llava').to(device), data, device)


def test_a_tuner_with_alignment_compiles(device, compiler):
    model = align(build_unified('janus', drop_prompt=0.0)).to(device)
    batch = model.vlm.prepare(moved(batch_of('janus', 'gen'), device))
    assert_same_step(model, dict(inputs=batch), device)
