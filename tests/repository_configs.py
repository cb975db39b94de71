"""The configs of the repository, for the tests that go through all of them."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.runner import Runner

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
