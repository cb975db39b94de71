"""The gallery: every tiny config runs with its quick options, is not run again, and is shown on one page."""

import base64
import importlib
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
# Per entry, the commands and the figures that it has.
EXPECTED = dict(mergemix=(1, 2), simpo=(1, 2), aia=(2, 2), sphinx=(4, 1), weights=(1, 1), detection=(2, 1))


@pytest.fixture
def gallery(monkeypatch):
    for folder in ('gallery', 'benchmarks'):
        monkeypatch.syspath_prepend(str(TOOLS / folder))
    return importlib.import_module('build_gallery')


@pytest.fixture
def in_process(run_tool, monkeypatch):
    """Runs commands in this process; but for the benchmark, which has a test of its own, and here leaves its file."""
    commands = []

    def execute(command, log):
        commands.append(command)
        name, *arguments = command
        if name == 'tools/benchmarks/shapes_sphinx.py':
            return write_sweep(Path(arguments[arguments.index('--output') + 1]))
        monkeypatch.chdir(ROOT)
        return run_tool(name.removeprefix('tools/').removesuffix('.py'), *arguments)

    execute.commands = commands
    return execute


def write_sweep(path):
    studies = importlib.import_module('shapes_sphinx')
    (arm,) = studies.STUDIES['weights'].arms
    models = ('start', 'both', *(f'beta {beta}' for beta in studies.BETAS))
    found = {f'{model}/{task}': 50.0 + i for i, model in enumerate(models) for task in ('color', 'shape')}
    path.write_text(json.dumps(dict(settings={}, runs={f'weights: {arm}/0': found})))


def refuse(command, log):
    raise AssertionError(f'{command} was run again')


def entry(gallery, *steps, **options):
    """An entry that runs nothing real."""
    shown = importlib.import_module('_results').Shown({'seen': '7%'}, [])
    steps = tuple(importlib.import_module('_entries').Step(step, '--few') for step in steps)
    return gallery.Entry('mine', 'Mine & yours', 'A text.', steps, lambda folder: shown, **options)


def test_all_methods_run_and_stand_on_one_page_which_needs_no_other_file(gallery, in_process, tmp_path):
    expected = dict(EXPECTED)
    if find_spec('mmdet') is None:  # The page says so.
        expected['detection'] = (0, 0)
    options = ['--quick', '--work-dir', str(tmp_path)]
    page = gallery.main(options, in_process)
    text = page.read_text()
    assert len(in_process.commands) == sum(commands for commands, _ in expected.values())
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', text, re.DOTALL))
    assert list(sections) == list(expected) == [entry.name for entry in gallery.ENTRIES]
    for name, (commands, figures) in expected.items():
        images = re.findall(r'src="data:image/png;base64,([^"]+)"', sections[name])
        assert (sections[name].count('python tools/'), len(images)) == (commands, figures), name
        for image in images:
            assert np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))).std() > 10
        values = re.findall('<dd>(.*?)</dd>', sections[name])
        assert bool(values) == bool(figures) and not [value for value in values if 'nan' in value]
    assert '56.0%' in sections['weights'] and 'beta, 1' in sections['weights']
    assert 'these numbers mean nothing' in text
    assert not re.search(r'(src|href)="(?!data:|#)', text) and str(ROOT) not in text

    assert gallery.main(options, refuse) == page
    assert page.read_text() == text


def test_an_interrupted_entry_goes_on_with_the_step_that_was_not_done(gallery, tmp_path):
    ran, mine = [], entry(gallery, 'tools/a.py {folder}', 'tools/b.py {checkpoint}')

    def execute(command, log):
        if 'tools/b.py' in command and len(ran) < 2:
            ran.append('interrupted')
            raise KeyboardInterrupt
        ran.append(command)
        (tmp_path / 'last_checkpoint').write_text('iter_4.pth')

    with pytest.raises(KeyboardInterrupt):
        gallery.run_entry(mine, tmp_path, False, execute)
    done = gallery.run_entry(mine, tmp_path, False, execute)
    assert ran == [['tools/a.py', str(tmp_path)], 'interrupted', ['tools/b.py', 'iter_4.pth']]
    assert [one['command'] for one in done] == [f'tools/a.py {tmp_path}', 'tools/b.py CHECKPOINT']
    assert gallery.run_entry(mine, tmp_path, False, refuse) == done


def test_quick_results_are_not_taken_for_the_real_ones(gallery, tmp_path):
    mine = entry(gallery, 'tools/a.py')
    gallery.run_entry(mine, tmp_path, True, lambda command, log: None)
    with pytest.raises(
        SystemExit, match=r'other commands, such as python tools/a\.py --few: remove it, or .*--work-dir'
    ):
        gallery.run_entry(mine, tmp_path, False, refuse)


def test_a_method_without_its_library_says_so(gallery, tmp_path, monkeypatch):
    ready = entry(gallery, 'tools/a.py')
    monkeypatch.setattr(gallery, 'ENTRIES', (ready, ready._replace(name='other', needs=('no_such_library',))))
    page = gallery.main(['--work-dir', str(tmp_path)], lambda command, log: None).read_text()
    assert 'Mine &amp; yours' in page and page.count('7%') == 1
    assert 'Not run, as no_such_library cannot be imported' in page and 'mean nothing' not in page
    assert not list(tmp_path.glob('.*'))


def test_a_command_that_fails_names_its_log(gallery, tmp_path):
    log = tmp_path / 'output.log'
    with pytest.raises(SystemExit, match=rf'failed, see the end of {re.escape(str(log))}'):
        gallery.execute(['-c', 'print("why"); raise SystemExit(3)'], log)
    assert log.read_text() == 'why\n'
