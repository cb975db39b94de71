"""The configs of the repository, for the tests that go through all of them."""

import re
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
FOLDERS = sorted({path.parent for path in CONFIGS.glob('*/*.py')})

# {model}_{batch size}[-{what is trained, mixer, schedule, length, strategy}]_{dataset}
NAME = re.compile(
    r'(?P<model>[a-z0-9.-]+)_(?P<gpus>\d+)xb(?P<batch>\d+)(?:-(?P<words>[a-z0-9-]+))?_(?P<dataset>[a-z0-9-]+)'
)


def config_files(folder):
    """All configs of a folder, e.g. 'mergemix'."""
    return sorted((CONFIGS / folder).glob('*.py'))


def words_of(path):
    """What the middle of a config's name says, such as ['simpo', 'mergemix', 'coslr', '1e', 'fsdp']."""
    return (NAME.fullmatch(path.stem)['words'] or '').split('-')


def parametrize(files):
    """A test per config, named as the config is."""
    return pytest.mark.parametrize('path', files, ids=[path.stem for path in files])


def read_once(patch):
    """Let MMEngine parse each config of the repository once, not once for each config that inherits it."""
    # Reading all metafiles of MMPretrain again for each `mmpretrain::` base.
    patch.setattr(config_utils, 'load', cache(config_utils.load))
    parse, parsed = Config._file2dict, {}

    def parse_once(filename, *args, **kwargs):
        if not Path(filename).resolve().is_relative_to(CONFIGS):
            return parse(filename, *args, **kwargs)
        key = repr((filename, args, kwargs))
        if key not in parsed:
            parsed[key] = parse(filename, *args, **kwargs)
        return deepcopy(parsed[key])

    patch.setattr(Config, '_file2dict', staticmethod(parse_once))


@cache
def _load(path):
    return Config.fromfile(path)


def load(path):
    """A config that the test may change."""
    return deepcopy(_load(path))


def loaders(cfg):
    """The data loaders of a config."""
    return [cfg[key] for key in ('train_dataloader', 'val_dataloader', 'test_dataloader') if cfg.get(key)]


def find(node, key):
    """All values that a key has inside of a config."""
    if isinstance(node, dict):
        own = [node[key]] if key in node else []
        return own + [one for value in node.values() for one in find(value, key)]
    return [one for value in node for one in find(value, key)] if isinstance(node, list | tuple) else []


@pytest.fixture(scope='module', autouse=True)
def quick_mmengine():
    """Leave out what takes MMEngine longer than the training steps of these tests and changes none of them."""
    with pytest.MonkeyPatch.context() as patch:
        # Laying out the text of the configs that every Runner writes down, several times each.
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        read_once(patch)
        # Asking compilers for their versions.
        patch.setattr(Runner, '_log_env', lambda *_: None)
        yield


class StopAfterTwoSteps(Hook):
    """Stops without touching max_iters, so that nothing takes these steps for the last ones."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.train_loop.stop_training = runner.iter == 1


class StopAfterOneEpoch(Hook):
    """Stops without touching max_epochs, so that the schedules keep their length."""

    def after_train_epoch(self, runner):
        runner.train_loop.stop_training = True


def without_strategy(cfg):
    """Sharding needs several processes (test_fsdp2_strategy.py): its configs run in one without a strategy."""
    if cfg.pop('strategy', None):
        cfg.pop('runner_type')
    return cfg


def runner_of_two_steps(cfg, folder, monkeypatch):
    """A Runner of a shrunk config of iterations, ready to train or to test; building it leaves the config as it is."""
    # MMEngine has autocast on GPUs only; torch has it for bfloat16 on CPUs.
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    cfg.work_dir, cfg.experiment_name, cfg.launcher = str(folder / 'work'), folder.name, 'none'
    if cfg.get('param_scheduler'):
        # Two steps of the warm-up would be lost in rounding.
        cfg.param_scheduler = None
        cfg.optim_wrapper.optimizer.lr = 1e-2
    given = deepcopy(cfg.model)
    runner = build_runner(cfg)
    assert cfg.model == given
    runner.register_hook(StopAfterTwoSteps())
    return runner


def frozen_encoders():
    """The tiny SPHINX with frozen encoders, as in the recipes of full size."""
    cfg = load(CONFIGS / 'sphinx/tiny-sphinx_1xb16-align-coslr-400i_shapes.py')
    cfg.model.vlm.trainable = ['projector', 'language_model']
    for encoder in cfg.model.vlm.backbone.encoders:
        encoder.frozen = True
    return cfg
