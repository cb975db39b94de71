"""Files around the package agree with it: workflows, citation, changelog, recipes for contributors."""

import re
from pathlib import Path

import pytest
import yaml
from golden.public_names import MOVED_PATHS

from mergemix_mm import __version__, moved

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / '.github' / 'workflows').glob('*.yml'))
TARGETS = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_of_the_makefile(path):
    jobs = yaml.safe_load(path.read_text())['jobs']
    commands = [step['run'] for job in jobs.values() for step in job['steps'] if 'run' in step]
    assert commands
    for command in commands:
        assert re.fullmatch(r'make ([a-z-]+) PYTHON=python', command)[1] in TARGETS


def test_the_fast_tests_run_on_the_minor_versions_of_python_that_workflows_offer():
    jobs = yaml.safe_load((ROOT / '.github/workflows/tests.yml').read_text())['jobs']
    assert jobs['fast']['strategy']['matrix']['python'] == ['3.10', '3.11', '3.12', '3.13']


@pytest.mark.parametrize(
    'path', sorted((ROOT / '.github' / 'ISSUE_TEMPLATE').glob('*.yml')), ids=lambda path: path.stem
)
def test_forms_of_issues_have_what_github_asks_for(path):
    form = yaml.safe_load(path.read_text())
    if path.stem != 'config':
        assert {'name', 'description', 'body'} <= set(form)
        assert all(field['attributes']['label'] and field['id'] for field in form['body'])


def test_the_citation_names_the_version_and_has_the_required_fields():
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors'} <= set(cff)
    assert (cff['version'], cff['license']) == (__version__, 'Apache-2.0')
    for work in cff['references']:
        assert {'type', 'title', 'authors', 'year', 'url'} <= set(work)


def test_the_changelog_lists_all_that_moved():
    rows = set(re.findall(r'^\| `(.+?)` \| `(.+?)` \|$', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE))
    expected = set({**moved.MODULES, **moved.CONFIGS, **MOVED_PATHS}.items())
    assert not expected - rows, f'add to CHANGELOG.md: {sorted(expected - rows)}'


def test_paths_and_targets_in_the_guide_for_contributors_exist():
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    assert set(re.findall(r'make ([a-z][a-z-]+)', text)) <= TARGETS
    paths = set(re.findall(r'(?<![\w/.])((?:mergemix_mm|tests|tools|docs)/[\w/.-]+)', text))
    missing = [path for path in paths if 'NAME' not in path and not (ROOT / path.rstrip('.')).exists()]
    assert not missing
