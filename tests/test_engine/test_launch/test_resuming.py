"""The newest checkpoint that can be loaded is resumed from, whatever a killed run or a move has left."""

import os

import pytest
import torch
from mmengine.runner import FlexibleRunner, Runner
from tiny_runs import build, train

from mergemix_mm.engine.launch import choose_checkpoint, resuming


def make(folder, resume=False, **kwargs):
    runner = build(folder, resume=resume, validate=False, checkpoint=dict(type='AtomicCheckpointHook'), **kwargs)
    choose_checkpoint(runner)
    return runner


def damage(path, how):
    content = path.read_bytes()
    if how == 'garbage':
        path.write_bytes(os.urandom(1000))
    elif how == 'middle':  # The length and the end are right.
        middle = len(content) // 2
        wrong = bytes(byte ^ 255 for byte in content[middle : middle + 64])
        path.write_bytes(content[:middle] + wrong + content[middle + 64 :])
    elif how == 'another':
        torch.save(dict(weight=torch.zeros(2)), path)
    else:
        path.write_bytes(content[: dict(empty=0, truncated=len(content) // 2)[how]])


@pytest.mark.parametrize('how', ['truncated', 'empty', 'garbage', 'middle', 'another'])
def test_a_damaged_checkpoint_is_named_and_skipped(tmp_path, how, monkeypatch):
    lines = []
    monkeypatch.setattr(resuming, 'print_log', lambda line, *_: lines.append(line))
    runner = FlexibleRunner if how == 'middle' else Runner
    whole = train(make(tmp_path, runner=runner))
    damage(tmp_path / 'epoch_3.pth', how)
    resumed = make(tmp_path, resume=True, runner=runner)
    assert resumed._load_from == str(tmp_path / 'epoch_2.pth')
    assert lines[0].startswith(f'--resume: skipped {tmp_path / "epoch_3.pth"}: ') and '\n' not in lines[0]
    damage(tmp_path / 'epoch_2.pth', how)
    older = make(tmp_path, resume=True, runner=runner)
    assert older._load_from == str(tmp_path / 'epoch_1.pth')
    assert torch.equal(train(older), whole)


def test_a_folder_of_another_strategy_is_judged_by_its_checksums(tmp_path):
    for number in (1, 2):
        (tmp_path / f'epoch_{number}.pth').mkdir()
        for name in ('mp_rank_00_model_states.pt', 'zero_pp_rank_0_mp_rank_00_optim_states.pt'):
            torch.save(dict(module=torch.zeros(1000)), tmp_path / f'epoch_{number}.pth' / name)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert make(tmp_path, resume=True)._load_from == str(tmp_path / 'epoch_2.pth')
    damage(tmp_path / 'epoch_2.pth' / 'mp_rank_00_model_states.pt', 'truncated')
    assert make(tmp_path, resume=True)._load_from == str(tmp_path / 'epoch_1.pth')


@pytest.mark.parametrize('content', ['', 'garbage\0', '/gone/work_dirs/run/epoch_2.pth', 'a\nb', '/', '.', None])
def test_last_checkpoint_may_be_damaged_moved_or_gone(tmp_path, content):
    train(make(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=2)))
    (tmp_path / 'last_checkpoint').unlink()
    if content is not None:
        (tmp_path / 'last_checkpoint').write_text(content)
    assert make(tmp_path, resume=True)._load_from == str(tmp_path / 'epoch_2.pth')


def test_with_nothing_to_resume_from_a_run_starts_anew(tmp_path):
    runner = make(tmp_path, resume=True)
    assert runner._load_from is None
    assert torch.equal(train(runner), train(make(tmp_path / 'other')))


def test_a_checkpoint_that_the_user_names_is_not_replaced_by_another_one(tmp_path):
    train(make(tmp_path))
    damage(tmp_path / 'epoch_2.pth', 'truncated')
    runner = make(tmp_path, resume=True, load_from=str(tmp_path / 'epoch_2.pth'))
    assert runner._load_from == str(tmp_path / 'epoch_2.pth')
    with pytest.raises(Exception):
        runner.train()
