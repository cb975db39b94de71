"""The configs of the repository, for the tests that go through all of them."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mergemix_mm.engine.launch import build_runner

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
FOLDERS = sorted({path.parent for path in CONFIGS.glob('*/*.py')} - {CONFIGS / '_base_'})


def config_files(folder):
    """All configs of a folder, e.g. 'mergemix'; none of them is a base alone."""
    return sorted((CONFIGS / folder).glob('*.py'))


def parametrize(files):
    """A test per config, named as the config is."""
    return pytest.mark.parametrize('path', files, ids=[path.stem for path in files])


@cache
def _load(path):
    return Config.fromfile(path)


def load(path):
    """A config that the test may change."""
    return deepcopy(_load(path))


@pytest.fixture(scope='module', autouse=True)
def quick_mmengine():
    """Leave out what takes MMEngine longer than the training steps of these tests and changes none of them."""
    with pytest.MonkeyPatch.context() as patch:
        # Laying out the text of the configs that every Runner writes down, several times each.
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        # Reading all metafiles of MMPretrain again for each `mmpretrain::` base.
        patch.setattr(config_utils, 'load', cache(config_utils.load))
        # Asking compilers for their versions.
        patch.setattr(Runner, '_log_env', lambda *_: None)
        yield


class StopAfterTwoSteps(Hook):
    """Stops without touching max_iters, so that nothing takes these steps for the last ones."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.train_loop.stop_training = runner.iter == 1


def without_strategy(cfg):
    """FSDP and DeepSpeed need GPUs: their configs run in tests without a strategy."""
    if cfg.pop('strategy', None):
        cfg.pop('runner_type')
        cfg.optim_wrapper.type = 'OptimWrapper'
    return cfg


def runner_of_two_steps(cfg, folder, monkeypatch):
    """A Runner of a shrunk config of iterations, ready to train or to test."""
    # MMEngine would have autocast on GPUs alone; torch has it for bfloat16 on CPUs.
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    cfg.work_dir, cfg.experiment_name, cfg.launcher = str(folder / 'work'), folder.name, 'none'
    if cfg.get('param_scheduler'):
        # Two steps of the warm-up would be lost in rounding.
        cfg.param_scheduler = None
        cfg.optim_wrapper.optimizer.lr = 1e-2
    runner = build_runner(cfg)
    runner.register_hook(StopAfterTwoSteps())
    return runner
