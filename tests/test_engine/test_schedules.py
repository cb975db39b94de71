"""Tests of schedules that scale with the run: every config of the repository, shortened and lengthened."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from repository_configs import read_once
from torch import nn

from mergemix_mm import config_path
from mergemix_mm.engine import fit_schedule, launch

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for pattern in ('configs/*/*_*.py', 'projects/*/configs/*_*.py')
    for path in ROOT.glob(pattern)
    if path.parent.name != '_base_'
)


@cache
def read(path):
    return Config.fromfile(path)


@pytest.fixture(scope='module', autouse=True)
def quick_bases():
    with pytest.MonkeyPatch.context() as patch:
        read_once(patch)
        yield


def training_configs():
    """The configs that train, with what their training is measured in."""
    for path in FILES:
        if path.is_relative_to(ROOT / 'configs') or '-' in path.stem:
            cfg = read(path)
            if cfg.get('train_cfg') and cfg.get('param_scheduler'):
                yield path, deepcopy(cfg), 'max_epochs' if 'max_epochs' in cfg.train_cfg else 'max_iters'


def learning_rates(cfg, key, epoch_length):
    """Build the schedule as the Runner does, and go through the run: the rate of every iteration."""
    length = cfg.train_cfg[key]
    epochs, iters = (length, length * epoch_length) if key == 'max_epochs' else (length, length)
    model = nn.Linear(1, 1)
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    parts = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    schedulers = []
    for part in parts:
        part = deepcopy(part)
        part.setdefault('end', epochs if part.get('by_epoch', True) else iters)
        schedulers.append(
            PARAM_SCHEDULERS.build(part, default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
        )
    found = []
    for i in range(iters):
        found.append(optimizer.get_lr()['lr'][0])
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or (key == 'max_epochs' and (i + 1) % epoch_length == 0):
                scheduler.step()
    return found


def test_every_config_builds_its_schedule_in_a_run_of_one_two_or_all_steps_and_reaches_its_rate():
    seen, files = set(), 0
    for path, cfg, key in training_configs():
        files += 1
        written = deepcopy(cfg.param_scheduler)
        fit_schedule(cfg)
        assert cfg.param_scheduler == written, path  # A run of its own length has its own schedule.
        for length in (each for each in (1, 2, 3, 7) if each < cfg.train_cfg[key]):
            short = deepcopy(cfg)
            short.train_cfg[key] = length
            fit_schedule(short)
            once = str((short.param_scheduler, length))
            for epoch_length in (1, 5, 40) if key == 'max_epochs' and once not in seen else ():
                rates = learning_rates(short, key, epoch_length)
                # A warm-up in iterations knows no epochs: that of detectors may be longer than a run this short.
                parts = [part for part in short.param_scheduler if isinstance(part, dict)]
                assert not all(part.get('by_epoch', True) for part in parts) or max(rates) > 0.7, (
                    path,
                    length,
                    epoch_length,
                    rates,
                )
            if key == 'max_iters' and once not in seen:
                assert max(learning_rates(short, key, None)) > 0.7, (path, length)
            seen.add(once)
    assert files > 80 and len(seen) > 40


def test_a_shortened_schedule_is_the_long_one_in_small():
    cfg = Config.fromfile(config_path('mergemix/deit-small_1xb100-mergemix-coslr-200e_cifar100.py'))
    long = learning_rates(cfg, 'max_epochs', 20)
    cfg.train_cfg.max_epochs = 20
    fit_schedule(cfg)
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.begin, 'end' in cosine) == (2, 2, False)
    assert learning_rates(cfg, 'max_epochs', 20)[40::40] == pytest.approx(long[400::400], abs=0.01)

    cfg = Config.fromfile(config_path('sphinx/tiny-sphinx_1xb16-grounding-coslr-1000i_shapes.py'))
    cfg.train_cfg.max_iters = 100
    fit_schedule(cfg)
    assert [(part.begin, part.end) for part in cfg.param_scheduler] == [(0, 3), (3, 100)]


def test_a_config_that_inherits_a_schedule_and_trains_shorter_is_fitted_and_told(tmp_path, capsys):
    base = config_path('mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py')
    path = tmp_path / 'own.py'
    path.write_text(f'_base_ = {str(base)!r}\ntrain_cfg = dict(max_epochs=2)\n')
    cfg = launch.load_config(path)
    fit_schedule(cfg)
    assert [part.get('end') for part in cfg.param_scheduler] == [0.2, None] and cfg.param_scheduler[1].begin == 0.2
    assert len(learning_rates(cfg, 'max_epochs', 40)) == 80
    # One that inherits this one, and trains longer, keeps its warm-up; one with a schedule of its own keeps all.
    (tmp_path / 'longer.py').write_text(f'_base_ = {str(base)!r}\ntrain_cfg = dict(max_epochs=60)\n')
    cfg = launch.load_config(tmp_path / 'longer.py')
    fit_schedule(cfg)
    assert cfg.param_scheduler[0].end == 3
    own = "param_scheduler = [dict(type='LinearLR', end=1), dict(type='CosineAnnealingLR', begin=1, end=2)]\n"
    (tmp_path / 'other.py').write_text(f'_base_ = {str(base)!r}\ntrain_cfg = dict(max_epochs=2)\n{own}')
    cfg = launch.load_config(tmp_path / 'other.py')
    fit_schedule(cfg)
    assert [part.end for part in cfg.param_scheduler] == [1, 2]


def test_a_longer_run_ends_its_schedule_with_the_run():
    cfg = Config.fromfile(config_path('sphinx/tiny-sphinx_1xb16-tasks-coslr-600i_shapes.py'))
    cfg.train_cfg.max_iters = 1200
    fit_schedule(cfg)
    assert [(part.begin, part.end) for part in cfg.param_scheduler] == [(0, 30), (30, 1200)]


def test_milestones_and_iterations_of_detectors_are_scaled():
    cfg = Config.fromfile(config_path('transfer/retinanet-deit-small-convnext-small_8xb2-mergemix-step-12e_coco.py'))
    cfg.train_cfg.max_epochs = 6
    fit_schedule(cfg)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.end, steps.end, steps.milestones) == (250, 6, [4, 6])


def test_what_begins_after_the_run_is_named_where_its_length_is_unknown():
    cfg = Config(
        dict(
            train_cfg=dict(by_epoch=True, max_epochs=2),
            param_scheduler=[dict(type='LinearLR', end=20), dict(type='CosineAnnealingLR', begin=20)],
        )
    )
    with pytest.raises(
        ValueError, match='CosineAnnealingLR has begin=20, where the run ends at train_cfg.max_epochs=2'
    ):
        fit_schedule(cfg)
    cfg.param_scheduler[1].end = 200
    fit_schedule(cfg)
    assert [(part.get('begin', 0), part.end) for part in cfg.param_scheduler] == [(0, 2)]
    for schedule in (None, [], dict(type='CosineAnnealingLR')):
        fit_schedule(Config(dict(train_cfg=dict(max_epochs=2), param_scheduler=schedule)))
