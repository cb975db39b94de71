"""A wheel is all that training takes: configs, tools, templates and metafiles are in it, outside of the repository."""

import email
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from limits import HANGS
from packaging.requirements import Requirement

import mergemix_mm

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
# What an installed package offers besides training. A template with another text is taken for one of a stranger, and
# rendered by a program of the package.
OFFERS = """
import json, site, sys
# The package may be installed in the environment too, as an editable one: forget that.
for finder in [finder for finder in sys.meta_path if 'editable' in getattr(finder, '__module__', '')]:
    sys.meta_path.remove(finder)
    sys.modules.pop(finder.__module__, None)
sys.path.insert(0, sys.argv[1])
site.addsitedir(sys.argv[1])
from pathlib import Path
import mergemix_mm, mergemix_mm.toy
from mergemix_mm.datasets.conversations.chat_template import ChatTemplate
package = Path(mergemix_mm.__file__).parent
talk = [
    dict(role='user', content=[dict(type='image'), dict(type='text', text='What is it?')]),
    dict(role='assistant', content=[dict(type='text', text='A cat.')]),
]
tokens = dict(bos_token='<s>', eos_token='</s>', image_token='<image>')
written = {}
for path in package.rglob('*.jinja'):
    for suffix in ('', '{#- changed -#}') if path.stem == 'llava' else ('',):
        text, answers = ChatTemplate(path.stem, path.read_text() + suffix, tokens).render(talk)
        written[path.stem + suffix] = [text[slice(*span)] for span in answers]
config = mergemix_mm.config_path('mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py')
print(json.dumps(dict(
    package=str(package), typed=(package / 'py.typed').is_file(), config=config, written=written,
    toy=sorted(mergemix_mm.toy.__all__),
)))
"""
PIP = ('-m', 'pip', '--disable-pip-version-check')
OFFLINE = ('--no-build-isolation', '--no-deps')


def run(*command, **kwargs):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=HANGS, **kwargs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the repository: setuptools writes into the folder that it builds from."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp('copy') / 'source', ignore=NOT_PACKAGED)


@pytest.fixture(scope='module')
def wheel(source):
    run(*PIP, 'wheel', *OFFLINE, '--wheel-dir', source.parent, source)
    (path,) = source.parent.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def site(wheel):
    """The wheel, installed into a folder."""
    run(*PIP, 'install', '--no-deps', '--target', wheel.parent / 'site', wheel)
    return wheel.parent / 'site'


def environment(**variables):
    return dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1', **variables)


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
    assert not missing, f'{missing}: name them in package-data of pyproject.toml, and in MANIFEST.in'
    foreign = [name for name in names if not name.startswith('mergemix_mm') or '__pycache__' in name]
    assert not foreign


def requirements(name):
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().split('\n')
    return {Requirement(line.partition('#')[0]) for line in lines if line.strip()}


def test_its_metadata_are_those_of_the_repository(wheel):
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata['Version'] == mergemix_mm.__version__
    assert metadata['License-Expression'] == 'Apache-2.0'
    assert metadata.get_payload().startswith('# mergemix_mm')
    required = [Requirement(line) for line in metadata.get_all('Requires-Dist')]
    extras = {
        '': {'runtime'},
        **{name: {name} for name in ('optional', 'detection', 'quantization', 'puzzlemix', 'trl', 'docs')},
    }
    extras['tests'] = {'optional', 'detection', 'quantization', 'puzzlemix', 'docs', 'tests'}
    assert set(metadata.get_all('Provides-Extra')) == set(extras) - {''}
    for extra, names in extras.items():
        found = {f'{one.name}{one.specifier}' for one in required if f'"{extra}"' in f'{one.marker or chr(34) * 2}'}
        assert found == {f'{one.name}{one.specifier}' for name in names for one in requirements(name)}, extra


def check_offers(folder, package, config, cwd):
    out = run('-c', OFFERS, folder, cwd=cwd, env=environment(PYTHONPATH=''))
    offers = json.loads(out.strip().split('\n')[-1])
    assert (offers['package'], offers['config']) == (str(package), str(config)) and offers['typed']
    assert {'DigitsDataset', 'ShapesConversationDataset', 'shapes_processor'} <= set(offers['toy'])
    assert len(offers['written']) >= 11 and '{#- changed -#}' in ' '.join(offers['written'])
    for name, answers in offers['written'].items():
        assert len(answers) == 1 and 'A cat.' in answers[0], name


def test_templates_toy_data_configs_and_types_are_in_an_installed_wheel(site, tmp_path):
    package = site / 'mergemix_mm'
    config = package / '.mim/configs/mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py'
    check_offers(site, package, config, tmp_path)


def test_an_editable_install_reads_them_from_the_repository(source, tmp_path):
    target = tmp_path / 'site'
    run(*PIP, 'install', *OFFLINE, '--target', target, '-e', source)
    assert not list(target.rglob('*.jinja'))
    config = source / 'configs/mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py'
    check_offers(target, source / 'mergemix_mm', config, tmp_path)


def test_a_config_that_inherits_from_it_trains_outside_the_repository(site, tmp_path):
    (tmp_path / 'mine.py').write_text(CONFIG)
    # PYTHONPATH comes before the editable install of the environment, whose torch and OpenMMLab it uses.
    out = run('-c', LAUNCH, 'mine.py', cwd=tmp_path, env=environment(PYTHONPATH=str(site)))
    assert str(site / 'mergemix_mm' / '__init__.py') in out.split('\n')
    assert 'accuracy/top1' in out and str(ROOT) not in out.replace(sys.executable, '')
    assert list((tmp_path / 'work_dirs' / 'mine').glob('*.pth'))
