"""A killed and resumed run has to end with the weights of an uninterrupted one."""

import random

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner
from tiny_runs import Kill, build, train

from mergemix_mm.engine.hooks.step_seed_hook import DATA, STEP, WORKER, StepSeedHook, seed_generators


def kill_and_resume(work_dir, iteration, *, hooks=(StepSeedHook,), **kwargs):
    train(build(work_dir, hooks=[*(hook() for hook in hooks), Kill(iteration)], **kwargs))
    runner = build(work_dir, hooks=[hook() for hook in hooks], resume=True, **kwargs)
    # A new process starts anywhere.
    random.seed()
    np.random.seed()
    torch.seed()
    resumed = train(runner)
    assert runner.iter == runner.max_iters
    return resumed


@pytest.mark.parametrize('workers', [0, 2])
def test_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, workers):
    whole = train(build(tmp_path / 'whole', workers=workers))
    resumed = kill_and_resume(tmp_path / 'killed', 10, workers=workers)  # in the third epoch
    assert torch.equal(whole, resumed)


@pytest.mark.parametrize('workers', [0, 2])
def test_without_the_hook_the_weights_differ(tmp_path, workers):
    whole = train(build(tmp_path / 'whole', workers=workers, hooks=[]))
    resumed = kill_and_resume(tmp_path / 'killed', 10, workers=workers, hooks=[])
    assert not torch.allclose(whole, resumed, atol=1e-3)


def test_flexible_runner_resumes_to_the_same_weights(tmp_path):
    whole = train(build(tmp_path / 'whole', runner=FlexibleRunner))
    resumed = kill_and_resume(tmp_path / 'killed', 6, runner=FlexibleRunner)
    assert torch.equal(whole, resumed)


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_iteration_loop_without_workers_resumes_from_any_checkpoint(tmp_path, monkeypatch, sampler):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    options = dict(
        train_cfg=dict(by_epoch=False, max_iters=10, val_interval=3),
        checkpoint=dict(by_epoch=False, interval=2),
        sampler=dict(type=sampler),
    )
    whole = train(build(tmp_path / 'whole', **options))
    resumed = kill_and_resume(tmp_path / 'killed', 7, **options)
    assert torch.equal(whole, resumed)


def test_a_seed_left_open_is_taken_from_the_checkpoint(tmp_path):
    train(build(tmp_path, seed=None, hooks=[StepSeedHook(), Kill(6)]))
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['step_seed']
    runner = build(tmp_path, seed=None, resume=True)
    assert runner.seed != saved['seed']
    train(runner)
    assert runner.train_dataloader.sampler.seed == saved['sampler_seed']
    assert torch.load(tmp_path / 'epoch_3.pth', weights_only=False)['step_seed'] == saved


def test_validation_does_not_change_the_training(tmp_path):
    with_validation = train(build(tmp_path / 'with'))
    without = train(build(tmp_path / 'without', validate=False))
    assert torch.equal(with_validation, without)


def test_workers_draw_other_numbers_in_every_epoch(tmp_path):
    class Record(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            batches.append(torch.stack(data_batch['inputs']))

    batches = []
    same_order = dict(type='DefaultSampler', shuffle=False)
    train(build(tmp_path, workers=2, hooks=[StepSeedHook(), Record()], validate=False, sampler=same_order))
    first, second, third = torch.stack(batches).unflatten(0, (3, 4))
    assert not torch.isclose(first, second).any() and not torch.isclose(second, third).any()


def test_rank_iteration_and_purpose_give_different_draws():
    def draw(*key):
        seed_generators(*key)
        return torch.rand(()).item(), np.random.rand(), random.random()

    keys = [(0, 0, 0, STEP), (0, 0, 0, DATA), (0, 0, 0, WORKER), (0, 0, 1, STEP), (0, 1, 0, STEP), (1, 0, 0, STEP)]
    for generator in zip(*[draw(*key) for key in keys]):
        assert len(set(generator)) == len(keys)
    assert draw(*keys[0]) == draw(*keys[0])


@pytest.mark.parametrize('seed', [-1, 0.5, '0', True])
def test_a_seed_that_is_no_natural_number_is_refused(seed):
    with pytest.raises(ValueError, match='StepSeedHook: seed='):
        StepSeedHook(seed=seed)
