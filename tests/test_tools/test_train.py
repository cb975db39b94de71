"""tools/train.py: training, resuming, several processes, FlexibleRunner, and clear errors."""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_injection import in_child
from limits import HANGS
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from small_disk import small_disk
from two_ranks import free_port

from mergemix_mm.engine import launch
from mergemix_mm.models import MixupClassifier

ROOT = Path(__file__).parents[2]


def load(path):
    return torch.load(path, weights_only=False)


def assert_same_weights(first, second):
    first, second = load(first)['state_dict'], load(second)['state_dict']
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def mixers(monkeypatch):
    """What the classifier does to each batch: the augment that mixes it, or None."""
    drawn, loss = [], MixupClassifier.loss

    def record(self, *arguments):
        losses, result = loss(self, *arguments), self.mix_result
        drawn.append(result and ('Mixup' if result.mask is None else 'MergeMix'))
        return losses

    monkeypatch.setattr(MixupClassifier, 'loss', record)
    return drawn


@HOOKS.register_module()
class KillInSecondEpoch(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize('flexible', [False, True])
def test_a_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    config, tmp_path, run_tool, mixers, flexible
):
    if flexible:
        config.write_text(config.read_text() + "strategy = dict(type='SingleDeviceStrategy')\n")
    run_tool('train', config, '--work-dir', tmp_path / 'whole')
    killed = tmp_path / 'killed.py'
    killed.write_text(config.read_text() + "custom_hooks.append(dict(type='KillInSecondEpoch'))\n")
    with pytest.raises(KeyboardInterrupt):
        run_tool('train', killed, '--work-dir', tmp_path / 'killed')
    assert not (tmp_path / 'killed' / 'epoch_2.pth').exists()
    # A new process starts anywhere.
    torch.seed(), np.random.seed(), random.seed()
    run_tool('train', config, '--work-dir', tmp_path / 'killed', '--resume')
    assert_same_weights(tmp_path / 'whole' / 'epoch_2.pth', tmp_path / 'killed' / 'epoch_2.pth')
    whole, before, after = mixers[:8], mixers[8:14], mixers[14:]
    assert before == whole[:6] and after == whole[4:]
    assert {'MergeMix', 'Mixup'} <= set(after)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='forks')
def test_a_run_killed_in_the_middle_of_a_save_goes_on(config, tmp_path, run_tool):
    assert in_child(lambda: run_tool('train', config, '--work-dir', tmp_path / 'whole')) == 0
    killed, put, saved = tmp_path / 'killed', LocalBackend.put, []

    def job():
        def half(self, content, path):
            saved.append(path)
            if len(saved) == 2:
                put(self, content[: len(content) // 2], path)
                os.kill(os.getpid(), signal.SIGKILL)
            put(self, content, path)

        LocalBackend.put = half
        run_tool('train', config, '--work-dir', killed)

    assert in_child(job) == -signal.SIGKILL
    assert [path.name for path in killed.glob('*.pth')] == ['epoch_1.pth'] and list(killed.glob('.*.tmp'))
    assert in_child(lambda: run_tool('train', config, '--work-dir', killed, '--resume')) == 0
    assert_same_weights(tmp_path / 'whole' / 'epoch_2.pth', killed / 'epoch_2.pth')
    assert not list(killed.glob('.*'))


@HOOKS.register_module()
class FillDisk(Hook):
    def before_save_checkpoint(self, runner, checkpoint):
        with contextlib.suppress(OSError), open(Path(runner.work_dir, 'filler'), 'wb', buffering=0) as file:
            while True:
                file.write(bytes(4096))


@pytest.mark.parametrize(('kind', 'what'), [('full', 'epoch_1.pth: No space left'), ('read-only', 'run: Read-only')])
def test_a_bad_disk_ends_the_run_with_one_line(config, tmp_path, run_tool, kind, what):
    config.write_text(config.read_text() + "custom_hooks.append(dict(type='FillDisk'))\n")
    with small_disk(tmp_path / 'disk', kind, free=1_000_000) as disk:
        with pytest.raises(SystemExit) as raised:
            run_tool('train', config, '--work-dir', disk / 'run')
        message = str(raised.value)
        assert message.startswith(f'cannot write {disk}/run') and what in message and ' free; ' in message
        assert '\n' not in message
        assert not [path for path in disk.glob('run/.*')]


@pytest.fixture
def port():
    return free_port()


def test_two_processes_train_over_gloo_without_a_gpu(config, tmp_path, run_command, port):
    environment = dict(os.environ, PYTHON=sys.executable, PORT=port, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    command = ['bash', ROOT / 'tools' / 'dist_train.sh', config, '2', '--work-dir', tmp_path / 'work']
    done = run_command(command, env=environment, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-3000:]
    # Twenty images in batches of five, shared by two processes: two steps in each of two epochs.
    assert load(tmp_path / 'work' / 'epoch_2.pth')['meta']['iter'] == 4
    scalars = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert any('accuracy/top1' in json.loads(line) for line in scalars)


@pytest.mark.skipif(sys.platform != 'linux' or torch.cuda.is_available(), reason='forks, and needs no GPU')
def test_a_strategy_trains_over_gloo_without_a_gpu(config, tmp_path, run_tool, port, monkeypatch):
    config.write_text(config.read_text() + "strategy = dict(type='DDPStrategy')\n")
    for name, value in dict(
        RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1', MASTER_PORT=port
    ).items():
        monkeypatch.setenv(name, value)
    assert in_child(lambda: run_tool('train', config, '--work-dir', tmp_path / 'work', '--launcher', 'pytorch')) == 0
    assert load(tmp_path / 'work' / 'epoch_2.pth')['meta']['iter'] == 8


def test_a_command_that_takes_too_long_leaves_no_process_behind(run_command):
    ours, theirs = os.pipe()
    with pytest.raises(subprocess.TimeoutExpired):
        run_command(['bash', '-c', 'sleep 60 & wait'], timeout=0.5, pass_fds=[theirs])
    os.close(theirs)
    # The pipe ends when the last process that holds its other side is gone.
    assert select.select([ours], [], [], 5)[0] and os.read(ours, 1) == b''
    os.close(ours)


def test_no_validate_reaches_the_run(config, tmp_path, monkeypatch, run_tool):
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


@pytest.fixture
def merge(config, load_tool):
    """The config that flags end in."""
    train = load_tool('train')

    def merge(*flags):
        args = train.parse_args([str(config), *flags])
        return train.merge_args(launch.load_config(args.config), args)

    return merge


def test_cfg_options_win_over_flags_as_in_mmpretrain(merge):
    options = ['work_dir=b', 'resume=False', 'auto_scale_lr.base_batch_size=64']
    cfg = merge('--work-dir', 'a', '--resume', '--auto-scale-lr', '--cfg-options', *options)
    assert cfg.work_dir == 'b' and cfg.resume is False
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=64)
    assert merge('--work-dir', 'a').work_dir == 'a'


def test_amp_replaces_the_plain_wrapper(merge):
    wrapper = merge('--amp').optim_wrapper
    assert wrapper.type == 'AmpOptimWrapper' and wrapper.loss_scale == 'dynamic'


@pytest.mark.parametrize('wrapper', ['FSDPOptimWrapper', 'ApexOptimWrapper'])
def test_amp_leaves_other_wrappers_alone_and_names_the_way_out(config, merge, wrapper):
    config.write_text(config.read_text() + f"optim_wrapper['type'] = '{wrapper}'\n")
    with pytest.raises(SystemExit, match=rf"--amp: .*optim_wrapper\.type='{wrapper}'.*optim_wrapper.opt_level"):
        merge('--amp')


def test_a_shortened_run_trains_with_its_schedule_in_small(config, run_tool, capfd):
    schedule = """
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=20, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=200)
"""
    config.write_text(config.read_text() + schedule)
    work_dir = config.parent / 'work'
    options = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
    run_tool('train', config, '--work-dir', work_dir, '--cfg-options', *options)
    assert (work_dir / 'epoch_2.pth').is_file()
    said = ''.join(capfd.readouterr())
    assert 'written for train_cfg.max_epochs=200, and this run has 2' in said
    assert 'LinearLR end 20 -> 0.2' in said and 'CosineAnnealingLR begin 20 -> 0.2' in said
