"""The Runner of a config, and the process group of CPUs, without building a Runner."""

import atexit
import gc
import logging
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from torch.nn.parallel import DistributedDataParallel

from mergemix_mm.engine.launch import LaunchError, build_runner, runner
from mergemix_mm.engine.strategies import FSDP2Strategy


class BuiltRunner:
    """Stands for the Runner of a config."""

    _resume = False
    logger = logging.getLogger('built')

    def __init__(self, cfg):
        self.cfg = cfg

    def register_hook(self, hook):
        pass


@pytest.mark.parametrize(('device', 'workers'), [('cpu', 2), ('cuda', 0)])
def test_a_runner_gets_loaders_that_torch_takes(monkeypatch, device, workers):
    monkeypatch.setattr(runner, 'get_device', lambda: device)
    monkeypatch.setattr(runner.Runner, 'from_cfg', BuiltRunner)
    loader = dict(num_workers=workers, pin_memory=True, persistent_workers=True)
    built = build_runner(Config(dict(launcher='none', train_dataloader=loader)))
    kept = {key for key, value in built.cfg.train_dataloader.items() if value is True}
    assert kept == {'persistent_workers' if workers else 'pin_memory'}


def test_processes_with_gpus_are_left_to_mmengine_and_nccl(monkeypatch):
    monkeypatch.setattr(runner, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(runner.Runner, 'from_cfg', BuiltRunner)
    for launcher in ('pytorch', 'slurm', 'mpi'):  # No rank is set: gloo would ask for it.
        built = build_runner(Config(dict(launcher=launcher))).cfg
        assert built.env_cfg.dist_cfg.backend == 'nccl' and 'model_wrapper_cfg' not in built
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ('hooks', 'round_up', 'message'),
    [
        ([EMAHook()], True, 'custom_hooks: EMAHook copies'),
        ([], False, 'val_dataloader.sampler.round_up=False: '),
        ([], True, None),
    ],
)
def test_what_sharded_weights_cannot_serve_is_refused(monkeypatch, hooks, round_up, message):
    monkeypatch.setattr(runner, 'get_world_size', lambda: 2)
    monkeypatch.setattr(runner, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(runner.FlexibleRunner, 'from_cfg', BuiltRunner)
    monkeypatch.setattr(BuiltRunner, 'strategy', FSDP2Strategy(work_dir='.'), raising=False)
    monkeypatch.setattr(BuiltRunner, 'hooks', hooks, raising=False)
    loader = dict(sampler=dict(type='DefaultSampler', round_up=round_up), dataset={})
    cfg = Config(dict(launcher='pytorch', strategy=dict(type='FSDP2Strategy'), val_dataloader=loader))
    with nullcontext() if message is None else pytest.raises(LaunchError, match=message):
        build_runner(cfg)


@pytest.mark.parametrize(('randomness', 'expected'), [({}, None), (dict(seed=0, deterministic=True), ':4096:8')])
def test_a_deterministic_run_sets_what_cublas_needs_for_that(monkeypatch, randomness, expected):
    monkeypatch.setattr(runner.Runner, 'from_cfg', BuiltRunner)
    monkeypatch.setattr(os, 'environ', {})
    build_runner(Config(dict(launcher='none', randomness=randomness)))
    assert os.environ.get('CUBLAS_WORKSPACE_CONFIG') == expected
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':16:8'  # What the user has set stays.
    build_runner(Config(dict(launcher='none', randomness=randomness)))
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':16:8'


def test_slurm_without_a_gpu_points_to_torchrun(monkeypatch):
    monkeypatch.setattr(runner, 'get_device', lambda: 'cpu')
    with pytest.raises(LaunchError, match='--launcher slurm: needs GPUs.*dist_train'):
        build_runner(Config(dict(launcher='slurm')))


def test_the_pytorch_launcher_without_torchrun_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(runner, 'get_device', lambda: 'cpu')
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LaunchError, match='RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set'):
        build_runner(Config(dict(launcher='pytorch')))


def threads():
    return {task.name for task in Path('/proc/self/task').iterdir()}


@pytest.mark.skipif(sys.platform != 'linux', reason='counts threads in /proc')
def test_gloo_has_no_thread_left_when_a_run_ends(monkeypatch):
    monkeypatch.setattr(runner, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(runner.Runner, 'from_cfg', BuiltRunner)
    for name, value in dict(RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=0).items():
        monkeypatch.setenv(name, str(value))
    at_exit = []
    monkeypatch.setattr(atexit, 'register', at_exit.append)
    before = threads()
    build_runner(Config(dict(launcher='pytorch')))
    # A Runner, its loops and its hooks refer to each other, so that no model goes when they do.
    gc.disable()
    try:
        cycle = dict(model=DistributedDataParallel(torch.nn.Linear(2, 2)))
        cycle['loop'] = dict(runner=cycle)
        del cycle
        started = threads() - before
        assert len(started) >= 3  # Two of the group, one of the connections; they have no names under torch 2.8.
        (stop,) = at_exit
        stop()
    finally:
        gc.enable()
    # The kernel lists a thread for a moment after it was joined, which can be long on a busy machine.
    end = time.monotonic() + 60
    while started & threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert not started & threads() and not torch.distributed.is_initialized()
    # Somebody may have ended it before.
    stop()
