"""What the package had once stays: models of images with their outputs, and the names that users write."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mergemix_mm.moved import CONFIGS, MODULES

ROOT = Path(__file__).parents[1]
HERE = ROOT / 'tests' / 'golden'
GOLDEN = runpy.run_path(str(HERE / 'write_golden.py'))
MOVED = {f'mergemix_mm.{old}' for old in MODULES}
NAMES = runpy.run_path(str(HERE / 'public_names.py'))
PATHS = NAMES['MOVED_PATHS'] | {f'configs/{old}': f'configs/{new}' for old, new in CONFIGS.items()}


@pytest.fixture(scope='module')
def written():
    return GOLDEN['read']()


@pytest.mark.parametrize('name', GOLDEN['CONFIGS'])
def test_a_model_of_an_earlier_day_is_the_same_today(name, written):
    model = GOLDEN['build'](json.loads(written[name]['config']))
    model.load_state_dict(written[name]['weights'], strict=True)
    found, expected = GOLDEN['outputs'](name, model), written[name]['outputs']
    assert all(one.std() > 1e-3 for one in expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_no_name_that_users_write_is_gone():
    today = NAMES['collect']()
    gone = {
        kind: sorted(set(names) - set(today[kind])) for kind, names in json.loads(NAMES['FILE'].read_text()).items()
    }
    moved = gone.pop('exported')
    gone['paths'] = [path for path in gone['paths'] if not (ROOT / PATHS.get(path, path)).exists()]
    assert not any(gone.values()), gone
    for name in moved:
        module, _, attribute = name.rpartition('.')
        with pytest.warns(FutureWarning, match='moved to'):
            sys.modules.pop(module if module in MOVED else None, None)
            getattr(importlib.import_module(module), attribute)


def test_new_names_are_listed():
    listed = json.loads(NAMES['FILE'].read_text())
    new = {kind: sorted(set(names) - set(listed[kind])) for kind, names in NAMES['collect']().items()}
    assert not any(new.values()), f'run python tests/golden/public_names.py: {new}'
