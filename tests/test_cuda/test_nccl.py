"""One process of a group: DDP and fully_shard over nccl (gloo on a CPU), by hand and as the tools start them."""

import os

import numpy as np
import pytest
import tiny_vlms
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from on_device import allow_amp, moved, optim_wrapper, train_step
from test_cuda.test_mixing import augment, classifier, pictures
from test_cuda.test_runner import classifier_run
from test_models.test_tuners.test_unified_tuner import align, batch_of
from test_models.test_tuners.test_unified_tuner import build as build_unified
from test_models.test_tuners.test_vlm_tuner import MIXERS, SIMPO, samples
from test_models.test_tuners.test_vlm_tuner import build as build_tuner
from torch.distributed.fsdp import fully_shard
from two_ranks import sharded, whole


@pytest.fixture
def group(device, tmp_path):
    """A process group of one."""
    options = dict(device_id=torch.device('cuda', 0)) if device.type == 'cuda' else {}
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, init_method=f'file://{tmp_path}/store', rank=0, world_size=1, **options)
    yield
    dist.destroy_process_group()


def models(kind, device):
    """A model and its batch on the device."""
    if kind == 'classifier':
        model = classifier(augment('MergeMix'), device)
        return model, model.data_preprocessor(pictures(), training=True)
    if kind == 'simpo':
        model = build_tuner('llava', SIMPO, MIXERS['MergeMix'])
        return model.to(device), dict(inputs=moved(tiny_vlms.tiny_batch('llava', samples()), device))
    model = align(build_unified('janus', drop_prompt=0.0))
    return model.to(device), dict(inputs=moved(batch_of('janus', 'und'), device))


def gradients(model, wrapped, data):
    torch.manual_seed(0)
    np.random.seed(0)
    losses = wrapped(**data, mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    found = [one.grad for one in model.parameters() if one.grad is not None]
    return [one.full_tensor() if hasattr(one, 'full_tensor') else one for one in found]


@pytest.mark.parametrize('kind', ['classifier', 'simpo', 'alignment'])
@pytest.mark.parametrize('way', ['ddp', 'fully_shard'])
def test_gradients_are_those_of_the_plain_model(way, kind, group, device):
    model, data = models(kind, device)
    expected = gradients(model, model, data)
    model, data = models(kind, device)
    if way == 'ddp':
        wrapped = MMDistributedDataParallel(
            model, device_ids=[0] if device.type == 'cuda' else None, find_unused_parameters=True
        )
    else:
        if kind != 'classifier':
            for layer in model.vlm.family.language_model.layers:
                fully_shard(layer)
        wrapped = fully_shard(model)
    found = gradients(model, wrapped, data)
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('cpu_offload', [False, True])
def test_the_strategy_trains_in_mixed_precision(cpu_offload, device, tmp_path):
    """It starts the group of a process without a launcher; shards on the CPU need gloo beside nccl."""
    model, data = models('simpo', device)
    optim = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='AdamW', lr=1e-3))
    try:
        optim['clip_grad'] = dict(max_norm=1.0)
        model, wrapper = sharded(model.cpu(), tmp_path, optim, cpu_offload=cpu_offload)
        before = [whole(one) for one in model.parameters()]
        for _ in range(2):
            log = model.train_step(dict(data, data_samples=None), wrapper)
            assert all(torch.as_tensor(value).isfinite() for value in log.values())
        moved_by_steps = [not torch.equal(whole(one), old) for one, old in zip(model.parameters(), before, strict=True)]
        assert any(moved_by_steps)
        kinds = {one.to_local().device.type for one in model.parameters()}
        assert kinds == ({'cpu'} if cpu_offload else {device.type})
    finally:
        dist.destroy_process_group()


def test_ddp_trains_in_half_precision(group, device, monkeypatch):
    model, data = models('simpo', device)
    wrapped = MMDistributedDataParallel(
        model, device_ids=[0] if device.type == 'cuda' else None, find_unused_parameters=True
    )
    wrapper = optim_wrapper(wrapped, 'float16', device, monkeypatch)
    assert train_step(wrapped, data, wrapper)['loss_simpo'] > 0


def test_the_tools_start_a_group_and_train(device, tmp_path, monkeypatch):
    """As torchrun with one process does."""
    allow_amp(device, monkeypatch)
    names = dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='29531')
    for name, value in names.items():
        monkeypatch.setitem(os.environ, name, value)
    monkeypatch.setattr(torch.multiprocessing, 'set_start_method', lambda *args, **kwargs: None)
    options = {'optim_wrapper.type': 'AmpOptimWrapper', 'launcher': 'pytorch', 'find_unused_parameters': True}
    try:
        runner = classifier_run(tmp_path, **options)
        assert runner.distributed and dist.get_backend() == ('nccl' if device.type == 'cuda' else 'gloo')
        runner.train()
        assert (tmp_path / 'epoch_2.pth').is_file()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
