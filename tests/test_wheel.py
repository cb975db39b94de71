"""A wheel is all that training takes: configs, tools, templates and metafiles are in it, outside of the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from limits import HANGS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ('configs', 'tools')
NOT_PACKAGED = shutil.ignore_patterns(
    '.*', '__pycache__', '*.py[co]', '*.egg-info', 'build', 'data', 'dist', 'work_dirs'
)

CONFIG = """
_base_ = __import__('mergemix_mm').config_path('mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py')
train_dataloader = dict(dataset=dict(train_per_class=13), num_workers=0, persistent_workers=False)
val_dataloader = dict(dataset=dict(test_ratio=0.05), num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_interval=1)
param_scheduler = None
"""
# Says where the package is, and hands over to the tool in it.
LAUNCH = """
import runpy, sys
from pathlib import Path
import mergemix_mm
print(mergemix_mm.__file__)
tool = Path(mergemix_mm.__file__).parent / '.mim/tools/train.py'
sys.argv[0] = str(tool)
runpy.run_path(str(tool), run_name='__main__')
"""


def run(*command, **kwargs):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=HANGS, **kwargs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools writes into the folder that it builds from."""
    folder = tmp_path_factory.mktemp('wheel')
    shutil.copytree(ROOT, folder / 'source', ignore=NOT_PACKAGED)
    options = ('--no-build-isolation', '--no-deps', '--disable-pip-version-check', '--wheel-dir', folder)
    run('-m', 'pip', 'wheel', *options, folder / 'source')
    (path,) = folder.glob('*.whl')
    return path


def files(folder, *patterns):
    found = {path for pattern in patterns for path in (ROOT / folder).rglob(pattern) if path.is_file()}
    return {path.relative_to(ROOT).as_posix() for path in found if '__pycache__' not in path.parts}


def test_it_holds_configs_tools_metafiles_and_data_of_the_package(wheel):
    names = set(ZipFile(wheel).namelist())
    expected = {f'mergemix_mm/.mim/{name}' for folder in PACKAGED for name in files(folder, '*')}
    expected |= files('mergemix_mm', '*') | {'mergemix_mm/.mim/model-index.yml'}
    assert sum(name.endswith('metafile.yml') for name in expected) >= 4
    assert sum(name.endswith('.jinja') for name in expected) >= 9
    missing = sorted(expected - names)
    assert not missing, f'{missing}: name them in package_data of setup.py, and in MANIFEST.in'
    foreign = [name for name in names if not name.startswith('mergemix_mm') or '__pycache__' in name]
    assert not foreign


def test_a_config_that_inherits_from_it_trains_outside_the_repository(wheel, tmp_path):
    run('-m', 'pip', 'install', '--no-deps', '--disable-pip-version-check', '--target', tmp_path / 'site', wheel)
    work = tmp_path / 'elsewhere'
    work.mkdir()
    (work / 'mine.py').write_text(CONFIG)
    # The wheel comes before the editable install of the environment, whose torch and OpenMMLab it uses.
    environment = dict(os.environ, PYTHONPATH=str(tmp_path / 'site'), CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    out = run('-c', LAUNCH, 'mine.py', cwd=work, env=environment)
    assert str(tmp_path / 'site' / 'mergemix_mm' / '__init__.py') in out.split('\n')
    assert 'accuracy/top1' in out and str(ROOT) not in out.replace(sys.executable, '')
    assert (work / 'work_dirs' / 'mine' / 'epoch_1.pth').is_file() or list((work / 'work_dirs' / 'mine').glob('best_*'))
