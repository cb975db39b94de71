"""tools/train.py: training, resuming, several processes, FlexibleRunner, and clear errors."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def load(path):
    return torch.load(path, weights_only=False)


def assert_same_weights(first, second):
    first, second = load(first)['state_dict'], load(second)['state_dict']
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize('flexible', [False, True])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(config, tmp_path, run_tool, flexible):
    if flexible:
        config.write_text(config.read_text() + "strategy = dict(type='SingleDeviceStrategy')\n")
    run_tool('train', config, '--work-dir', tmp_path / 'whole')
    # What a killed run leaves behind: the checkpoint of its first epoch.
    run_tool('train', config, '--work-dir', tmp_path / 'again', '--resume', tmp_path / 'whole' / 'epoch_1.pth')
    assert_same_weights(tmp_path / 'whole' / 'epoch_2.pth', tmp_path / 'again' / 'epoch_2.pth')
    assert not (tmp_path / 'again' / 'epoch_1.pth').exists()


@pytest.mark.parametrize('strategy', [None, 'DDPStrategy'])
def test_two_processes_train_over_gloo_without_a_gpu(config, tmp_path, strategy):
    if strategy is not None:
        config.write_text(config.read_text() + f'strategy = dict(type={strategy!r})\n')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    environment = dict(os.environ, PYTHON=sys.executable, PORT=port, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    command = ['bash', ROOT / 'tools' / 'dist_train.sh', config, '2', '--work-dir', tmp_path / 'work']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    # Twenty images in batches of five, shared by two processes: two steps in each of two epochs.
    assert load(tmp_path / 'work' / 'epoch_2.pth')['meta']['iter'] == 4
    scalars = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert any('accuracy/top1' in json.loads(line) for line in scalars)


def test_no_validate_and_cfg_options_reach_the_run(config, tmp_path, monkeypatch, run_tool):
    run_tool('train', config, '--work-dir', tmp_path / 'work', '--no-validate', '--no-pin-memory')
    scalars = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text()
    assert 'loss' in scalars and 'accuracy' not in scalars


def test_a_missing_config_is_named_with_its_closest_match(config, run_tool):
    with pytest.raises(SystemExit, match=r'CONFIG: there is no file .*tiny1\.py.*Close matches.*tiny\.py'):
        run_tool('train', config.with_name('tiny1.py'))


def test_a_missing_data_root_is_named_with_its_key(config, run_tool):
    config.write_text(
        config.read_text() + "train_dataloader['dataset'] = dict(type='CUB', data_root='data/no-birds')\n"
    )
    with pytest.raises(SystemExit, match=r"train_dataloader\.dataset\.data_root='data/no-birds'.*--cfg-options"):
        run_tool('train', config)


def test_auto_scale_lr_needs_a_base_batch_size(config, run_tool):
    with pytest.raises(SystemExit, match=r'auto_scale_lr\.base_batch_size'):
        run_tool('train', config, '--auto-scale-lr')
