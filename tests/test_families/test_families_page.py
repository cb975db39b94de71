"""docs/families.md: its tables are those of the declarations, and the tests that it names exist."""

import re

import families_table
import pytest
import tiny_vlms

pytest.importorskip('transformers')
TEXT = families_table.PAGE.read_text()
AGAIN = 'run PYTHONPATH=. python tests/families_table.py with transformers 5'


@pytest.mark.parametrize('name', tiny_vlms.ALL_FAMILIES)
def test_the_line_of_a_family_is_that_of_its_declaration(name):
    assert families_table.served()[name] in TEXT.split('\n'), AGAIN


def test_the_page_has_no_other_lines():
    from transformers import __version__

    found = re.findall(r'^\| .* \| ([\w. ]+) \| `(\w+)`(?:, `\w+\.py`)? \|$', TEXT, re.MULTILINE)
    versions = {name: version for version, name in found}
    assert len(versions) == len(found)
    if __version__.startswith('5'):
        assert families_table.written(TEXT) == TEXT, AGAIN
    else:
        assert {name for name in versions if '4' in versions[name]} == {*tiny_vlms.ALL_FAMILIES}
    assert families_table.refused() in TEXT, AGAIN


def test_the_tests_that_the_page_names_exist():
    tests = families_table.ROOT / 'tests'
    sources = '\n'.join(path.read_text() for path in tests.rglob('test_*.py'))
    named = re.findall(r'`(test_\w+)`', TEXT)
    assert len(named) > 5 and not [name for name in named if f'def {name}(' not in sources]
    assert all((tests / 'test_families' / name).is_file() for name in re.findall(r'`(test_\w+\.py)`', TEXT))
