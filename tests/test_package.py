"""What importing the package does, and where its configs are."""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANGS

import mergemix_mm
from mergemix_mm import paths

ROOT = Path(__file__).parents[1]


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=HANGS)


def test_functional_works_with_torch_alone():
    code = """
import sys
for name in ('mmengine', 'mmcv', 'mmpretrain', 'transformers', 'timm', 'numpy', 'sklearn', 'matplotlib'):
    sys.modules[name] = None
import torch, mergemix_mm.functional as F
print(F.topk_mask(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), 0.5).tolist())
print('mergemix_mm.models' in sys.modules)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    (warning,) = (line for line in done.stderr.split('\n') if 'Warning: mergemix_mm' in line)
    assert '<string>' in warning and 'mmengine, mmcv, mmpretrain' in warning and 'mergemix_mm.functional' in warning
    assert done.stdout.split('\n')[:2] == ['[[True, False, True, False]]', 'False']


@pytest.mark.parametrize('missing', [['mmpretrain'], ['mmengine', 'mmcv'], []])
def test_what_is_missing_is_named_in_one_warning(monkeypatch, recwarn, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name in missing else find_spec(name))
    importlib.reload(mergemix_mm)
    found = [str(one.message) for one in recwarn if str(one.message).startswith('mergemix_mm')]
    assert [text.split(' cannot')[0] for text in found] == [f'mergemix_mm: {", ".join(missing)}'] * bool(missing)


def test_an_import_hook_that_forbids_openmmlab_counts_as_its_absence():
    code = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmpretrain'):
            raise ImportError(name)
sys.meta_path.insert(0, Forbid())
import mergemix_mm.functional
"""
    assert run_python(code).returncode == 0


@pytest.mark.slow
def test_an_error_within_the_package_is_not_taken_for_a_missing_library():
    code = "import sys; sys.modules['mergemix_mm.engine'] = None; import mergemix_mm"
    done = run_python(code)
    assert done.returncode != 0 and 'mergemix_mm.engine' in done.stderr


@pytest.mark.slow
def test_without_the_extras_all_imports_and_no_heavy_library_is_loaded():
    code = """
import importlib.metadata, sys
extras = {'transformers', 'timm', 'peft', 'mmdet', 'pycocotools', 'bitsandbytes'}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in extras:
            raise ModuleNotFoundError(name)
installed = importlib.metadata.distribution
def distribution(name):
    if name in extras:
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)
importlib.metadata.distribution = distribution
sys.meta_path.insert(0, Absent())
from mergemix_mm.toy import DigitsDataset
print(len(DigitsDataset(split='train')) + len(DigitsDataset(split='test')))
print(sorted({name.split('.')[0] for name in sys.modules} & (extras | {'scipy', 'sklearn', 'matplotlib'})))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split('\n')[-2:] == ['1797', '[]']


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A package folder with one config beside it."""
    (tmp_path / 'configs' / 'mergemix').mkdir(parents=True)
    (tmp_path / 'configs' / 'mergemix' / 'vit-tiny_digits.py').touch()
    monkeypatch.setattr(paths, '_PACKAGE', tmp_path / 'mergemix_mm')
    return tmp_path


def test_config_path_finds_a_config_of_the_repository(repository):
    found = mergemix_mm.config_path('mergemix/vit-tiny_digits.py')
    assert found == str(repository / 'configs' / 'mergemix' / 'vit-tiny_digits.py')


def test_config_path_prefers_the_configs_of_an_installed_wheel(repository):
    installed = repository / 'mergemix_mm' / '.mim' / 'configs' / 'mergemix'
    installed.mkdir(parents=True)
    (installed / 'vit-tiny_digits.py').touch()
    assert mergemix_mm.config_path('mergemix/vit-tiny_digits.py') == str(installed / 'vit-tiny_digits.py')


def test_config_path_names_the_path_and_close_matches(repository):
    with pytest.raises(FileNotFoundError, match=r'vit-tiny_digit\.py.*Close matches: mergemix/vit-tiny_digits\.py'):
        mergemix_mm.config_path('mergemix/vit-tiny_digit.py')


PARTS = ('datasets', 'engine', 'evaluation', 'functional', 'models', 'toy', 'visualization')


@pytest.mark.parametrize('part', PARTS)
def test_defaults_in_docstrings_are_those_of_the_signatures(part):
    module, compared = importlib.import_module(f'mergemix_mm.{part}'), 0
    for name in module.__all__:
        documented, signature = inspect.getdoc(getattr(module, name)) or '', {}
        with contextlib.suppress(TypeError, ValueError):  # No callable, or one without a signature.
            signature = inspect.signature(getattr(module, name)).parameters
        for key, parameter in signature.items():
            entry = re.search(rf'^    {key} \(.*?(?=^    \w+ \(|^\S|\Z)', documented, re.MULTILINE | re.DOTALL)
            said = re.findall(
                r"Defaults to (?:``)?(-?[\d.]*\d|True|False|None|'[^']*')(?![\d.]*\d| million)",
                entry[0] if entry else '',
            )
            if said and isinstance(parameter.default, bool | int | float | str | None):
                compared += 1
                assert ast.literal_eval(said[-1]) == parameter.default, f'{name}: {key}'
    assert compared
