"""Loader defaults and the checks of data roots, without building a Runner."""

import pytest
from mmengine.config import Config

from mergemix_mm.engine.launch import LaunchError, build_runner, check_data_roots, set_loader_defaults


@pytest.mark.parametrize(('workers', 'allowed', 'expected'), [(2, True, True), (2, False, False), (0, True, False)])
def test_workers_persist_where_there_are_any_and_the_flag_allows_it(workers, allowed, expected):
    cfg = Config(dict(train_dataloader=dict(num_workers=workers, persistent_workers=True), val_dataloader=None))
    set_loader_defaults(cfg, 'train', 'val', persistent_workers=allowed)
    assert cfg.train_dataloader.persistent_workers is expected
    assert cfg.train_dataloader.collate_fn == dict(type='default_collate')


def with_dataset(**dataset):
    return Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset)))


def test_the_key_of_a_nested_dataset_is_named(tmp_path):
    there, missing = dict(type='CUB', data_root=str(tmp_path)), dict(type='CUB', data_root='nowhere')
    cfg = with_dataset(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[there, missing]))
    with pytest.raises(LaunchError, match=r"train_dataloader\.dataset\.dataset\.datasets\.1\.data_root='nowhere'"):
        check_data_roots(cfg, 'train')


def test_a_dataset_that_downloads_itself_may_start_without_its_data():
    check_data_roots(with_dataset(type='CIFAR100', data_root='nowhere'), 'train')
    with pytest.raises(LaunchError, match='nowhere'):
        check_data_roots(with_dataset(type='CIFAR100', data_root='nowhere', download=False), 'train')


def test_slurm_without_a_gpu_points_to_torchrun(monkeypatch):
    monkeypatch.setattr('mergemix_mm.engine.launch.get_device', lambda: 'cpu')
    with pytest.raises(LaunchError, match='--launcher slurm: needs GPUs.*dist_train'):
        build_runner(Config(dict(launcher='slurm')))


def test_the_pytorch_launcher_without_torchrun_names_what_is_missing(monkeypatch):
    monkeypatch.setattr('mergemix_mm.engine.launch.get_device', lambda: 'cpu')
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LaunchError, match='RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set'):
        build_runner(Config(dict(launcher='pytorch')))
