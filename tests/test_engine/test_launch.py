"""Loader defaults, the checks of data roots and the end of a CPU process group, without building a Runner."""

import atexit
import errno
import gc
import logging
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from torch.nn.parallel import DistributedDataParallel

from mergemix_mm.engine.launch import (
    LaunchError,
    build_runner,
    check_data_roots,
    check_resume,
    explain_stops,
    set_loader_defaults,
    use_own_hooks,
)


def test_loaders_get_the_defaults_they_lack_and_flags_switch_off():
    cfg = Config(dict(train_dataloader=dict(pin_memory=False), val_dataloader=None, test_dataloader=dict()))
    set_loader_defaults(cfg, 'train', 'val')
    filled = dict(pin_memory=False, persistent_workers=True, collate_fn=dict(type='default_collate'))
    assert cfg.train_dataloader == filled and cfg.val_dataloader is None and cfg.test_dataloader == {}
    set_loader_defaults(cfg, 'test', pin_memory=False, persistent_workers=False)
    assert not cfg.test_dataloader.pin_memory and not cfg.test_dataloader.persistent_workers


def wrapped(kind):
    return dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[dict(type=kind)]))


@pytest.mark.parametrize(
    ('scope', 'model', 'dataset', 'collate'),
    [
        ('mmpretrain', 'ImageClassifier', 'CIFAR10', 'default_collate'),
        ('mmpretrain', 'MixupClassifier', 'DigitsDataset', 'default_collate'),
        ('mmpretrain', 'VLMTuner', 'ConversationDataset', 'default_collate'),
        ('mmdet', 'mmpretrain.ImageClassifier', 'mmpretrain.CIFAR10', 'default_collate'),
        ('mmdet', 'mmpretrain.ImageClassifier', 'CocoDataset', 'default_collate'),
        ('mmdet', None, 'mmpretrain.CIFAR10', 'default_collate'),
        ('mmdet', 'MaskRCNN', 'CocoDataset', None),
        ('mmdet', 'MaskRCNN', 'ShapesCocoDataset', None),
        ('mmpretrain', 'mmdet.MaskRCNN', 'mmdet.CocoDataset', None),
        ('mmpretrain', 'mmdet.DETR', 'ShapesCocoDataset', None),
        ('mmpretrain', None, 'mmdet.CocoDataset', None),
        ('mmpretrain', 'mmseg.EncoderDecoder', 'mmseg.ADE20KDataset', None),  # Not installed here.
        ('mmseg', 'EncoderDecoder', 'ADE20KDataset', None),
        ('mmdet', 'ModelOfSomebody', 'DatasetOfSomebody', None),
    ],
)
@pytest.mark.parametrize('nested', [False, True])
def test_each_library_keeps_its_own_way_to_make_a_batch(scope, model, dataset, collate, nested):
    pytest.importorskip('mmdet')
    loader = dict(dataset=wrapped(dataset) if nested else dict(type=dataset, pipeline=[dict(type='mmdet.Resize')]))
    cfg = Config(dict(default_scope=scope, model=dict(type=model), train_dataloader=loader, test_dataloader=loader))
    set_loader_defaults(cfg, 'train', 'val', 'test')
    for key in ('train_dataloader', 'test_dataloader'):
        assert cfg[key].get('collate_fn') == (collate and dict(type=collate))
        assert cfg[key].pin_memory and cfg[key].persistent_workers


@pytest.mark.parametrize('nested', [False, True])
def test_the_scope_that_a_part_says_for_itself_counts(nested):
    pytest.importorskip('mmdet')
    loader = dict(dataset=dict(type='CocoDataset', _scope_='mmdet'))
    if nested:
        loader['dataset'] = dict(type='RepeatDataset', _scope_='mmdet', times=2, dataset=dict(type='CocoDataset'))
    model = dict(model=dict(type='MaskRCNN', _scope_='mmdet'))
    for rest in (model, {}, dict(model, default_scope='mmpretrain')):
        cfg = Config(dict(rest, train_dataloader=dict(loader)))
        set_loader_defaults(cfg, 'train')
        assert 'collate_fn' not in cfg.train_dataloader


def test_a_class_in_the_place_of_a_name_is_understood():
    from mmdet.models import DETR

    class Detector(DETR):
        """Somebody's own."""

    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dict(type='ShapesCocoDataset'))))
    cfg.model = dict(type=Detector)
    set_loader_defaults(cfg, 'train')
    assert 'collate_fn' not in cfg.train_dataloader


def test_what_a_loader_says_stays_and_the_loaders_of_several_benchmarks_are_told_apart():
    own = dict(collate_fn=dict(type='ConversationCollate'), dataset=dict(type='ConversationDataset'))
    boxes, images = dict(dataset=dict(type='mmdet.CocoDataset')), dict(dataset=dict(type='CIFAR10'))
    cfg = Config(dict(default_scope='mmpretrain', test_dataloader=dict(own=own, boxes=boxes, images=images)))
    set_loader_defaults(cfg, 'test')
    found = {name: loader.get('collate_fn', {}).get('type') for name, loader in cfg.test_dataloader.items()}
    assert found == dict(own='ConversationCollate', boxes=None, images='default_collate')


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
    monkeypatch.setattr('mergemix_mm.engine.launch.runner.get_device', lambda: device)
    monkeypatch.setattr('mergemix_mm.engine.launch.runner.Runner.from_cfg', BuiltRunner)
    loader = dict(num_workers=workers, pin_memory=True, persistent_workers=True)
    built = build_runner(Config(dict(launcher='none', train_dataloader=loader)))
    kept = {key for key, value in built.cfg.train_dataloader.items() if value is True}
    assert kept == {'persistent_workers' if workers else 'pin_memory'}


def test_processes_with_gpus_are_left_to_mmengine_and_nccl(monkeypatch):
    monkeypatch.setattr('mergemix_mm.engine.launch.runner.get_device', lambda: 'cuda')
    monkeypatch.setattr('mergemix_mm.engine.launch.runner.Runner.from_cfg', BuiltRunner)
    for launcher in ('pytorch', 'slurm', 'mpi'):  # No rank is set: gloo would ask for it.
        built = build_runner(Config(dict(launcher=launcher))).cfg
        assert built.env_cfg.dist_cfg.backend == 'nccl' and 'model_wrapper_cfg' not in built
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(('randomness', 'expected'), [({}, None), (dict(seed=0, deterministic=True), ':4096:8')])
def test_a_deterministic_run_sets_what_cublas_needs_for_that(monkeypatch, randomness, expected):
    monkeypatch.setattr('mergemix_mm.engine.launch.runner.Runner.from_cfg', BuiltRunner)
    monkeypatch.setattr(os, 'environ', {})
    build_runner(Config(dict(launcher='none', randomness=randomness)))
    assert os.environ.get('CUBLAS_WORKSPACE_CONFIG') == expected
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':16:8'  # What the user has set stays.
    build_runner(Config(dict(launcher='none', randomness=randomness)))
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':16:8'


def with_dataset(**dataset):
    return Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset)))


def test_the_key_of_a_nested_dataset_is_named(tmp_path):
    there, missing = dict(type='CUB', data_root=str(tmp_path)), dict(type='CUB', data_root='nowhere')
    cfg = with_dataset(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[there, missing]))
    with pytest.raises(LaunchError, match=r"train_dataloader\.dataset\.dataset\.datasets\.1\.data_root='nowhere'"):
        check_data_roots(cfg, 'train')


@pytest.mark.parametrize('missing', ['gen', 'und'])
def test_the_parts_of_a_unified_dataset_are_looked_at(tmp_path, missing):
    parts = {part: dict(type='TextToImageDataset', data_root=str(tmp_path)) for part in ('gen', 'und')}
    cfg = with_dataset(type='UnifiedDataset', **parts)
    check_data_roots(cfg, 'train')
    cfg.train_dataloader.dataset[missing].data_root = 'nowhere'
    with pytest.raises(LaunchError, match=rf"train_dataloader\.dataset\.{missing}\.data_root='nowhere'"):
        check_data_roots(cfg, 'train')


def test_the_tasks_of_a_mix_are_looked_at(tmp_path):
    vqa, grounding = (dict(type='ConversationDataset', data_root=root) for root in (str(tmp_path), 'nowhere'))
    tasks = dict(vqa=dict(dataset=vqa, weight=1), grounding=dict(dataset=grounding, weight=1))
    with pytest.raises(LaunchError, match=r"dataset\.tasks\.grounding\.dataset\.data_root='nowhere'"):
        check_data_roots(with_dataset(type='TaskMixDataset', tasks=tasks), 'train')


def test_a_dataset_that_downloads_itself_may_start_without_its_data():
    check_data_roots(with_dataset(type='CIFAR100', data_root='nowhere'), 'train')
    with pytest.raises(LaunchError, match='nowhere'):
        check_data_roots(with_dataset(type='CIFAR100', data_root='nowhere', download=False), 'train')


def test_slurm_without_a_gpu_points_to_torchrun(monkeypatch):
    monkeypatch.setattr('mergemix_mm.engine.launch.runner.get_device', lambda: 'cpu')
    with pytest.raises(LaunchError, match='--launcher slurm: needs GPUs.*dist_train'):
        build_runner(Config(dict(launcher='slurm')))


def test_the_pytorch_launcher_without_torchrun_names_what_is_missing(monkeypatch):
    monkeypatch.setattr('mergemix_mm.engine.launch.runner.get_device', lambda: 'cpu')
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LaunchError, match='RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set'):
        build_runner(Config(dict(launcher='pytorch')))


def threads():
    return {task.name for task in Path('/proc/self/task').iterdir()}


@pytest.mark.skipif(sys.platform != 'linux', reason='counts threads in /proc')
def test_gloo_has_no_thread_left_when_a_run_ends(monkeypatch):
    monkeypatch.setattr('mergemix_mm.engine.launch.runner.get_device', lambda: 'cpu')
    monkeypatch.setattr('mergemix_mm.engine.launch.runner.Runner.from_cfg', BuiltRunner)
    for name, value in dict(RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=0).items():
        monkeypatch.setenv(name, str(value))
    at_exit = []
    monkeypatch.setattr(atexit, 'register', at_exit.append)
    before = threads()
    build_runner(Config(dict(launcher='pytorch')))
    # A Runner, its loops and its hooks refer to each other, so that no model goes when they do.
    gc.disable()
    try:
        runner = dict(model=DistributedDataParallel(torch.nn.Linear(2, 2)))
        runner['loop'] = dict(runner=runner)
        del runner
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


def hooks_of(**cfg):
    cfg = Config({'default_scope': 'mmpretrain', **cfg})
    use_own_hooks(cfg)
    return cfg


class OwnHook(CheckpointHook):
    """A user's."""


@pytest.mark.parametrize(
    'name', ['CheckpointHook', 'mmengine.CheckpointHook', 'mmengine.hooks.CheckpointHook', CheckpointHook]
)
@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', None])
def test_the_plain_checkpoint_hook_is_replaced_however_it_is_named(name, scope):
    hook = dict(type=name, interval=3, save_best='auto')
    custom = [dict(hook), dict(type='EMAHook')]
    cfg = hooks_of(default_scope=scope, default_hooks=dict(checkpoint=hook), custom_hooks=custom)
    assert cfg.default_hooks.checkpoint == dict(type='AtomicCheckpointHook', interval=3, save_best='auto')
    assert [hook.type for hook in cfg.custom_hooks] == ['AtomicCheckpointHook', 'EMAHook']
    built = HOOKS.build(cfg.default_hooks.checkpoint)
    assert built.interval == 3


def test_a_hook_that_nobody_names_is_added_and_one_that_is_left_out_stays_out():
    assert hooks_of().default_hooks.to_dict() == dict(
        checkpoint=dict(type='AtomicCheckpointHook', interval=1), finite_loss=dict(type='NonFiniteLossHook')
    )
    assert hooks_of(default_hooks=dict(checkpoint=None, finite_loss=None)).default_hooks.to_dict() == dict(
        checkpoint=None
    )
    finite_loss = dict(type='NonFiniteLossHook', patience=9)
    kept = hooks_of(default_hooks=dict(checkpoint=dict(type=OwnHook), finite_loss=finite_loss))
    assert kept.default_hooks.checkpoint.type is OwnHook and kept.default_hooks.finite_loss.patience == 9


def test_the_patience_of_the_command_line_needs_no_type():
    kept = hooks_of(default_hooks=dict(finite_loss=dict(patience=9)))
    assert kept.default_hooks.finite_loss.to_dict() == dict(type='NonFiniteLossHook', patience=9)


def test_a_checkpoint_that_resume_names_has_to_be_there(tmp_path):
    with pytest.raises(LaunchError, match='--resume .*none.pth: there is no such file'):
        check_resume(Config(dict(resume=True, load_from=str(tmp_path / 'none.pth'))))
    check_resume(Config(dict(resume=True, load_from=None)))
    check_resume(Config(dict(resume=True, load_from='https://host/a.pth')))


def test_a_run_that_cannot_go_on_says_so_in_one_line(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    with (
        pytest.raises(LaunchError, match=f'cannot write {tmp_path}: No space left on device, .* GB free'),
        explain_stops(cfg),
    ):
        raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(LaunchError, match='the loss is NaN'), explain_stops(cfg):
        raise FloatingPointError('the loss is NaN')
    for other in (ValueError('other'), PermissionError(errno.EACCES, 'denied', 'data/image.jpg')):
        with pytest.raises(type(other)), explain_stops(cfg):
            raise other
