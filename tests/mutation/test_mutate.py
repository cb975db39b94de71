"""Tests of the tool that breaks lines: what it changes, what it leaves alone, and which tests it asks."""

import ast

import pytest
from mutation import mutate

SOURCE = '''
"""A module with 1 docstring."""


@register(3)
def pick(values: list[4], limit: int = 5) -> "list[6]":
    if len(values) < limit:
        raise ValueError(f'{limit + 7} is too much')
    return total(values[1:], limit).float()
'''


def changes(kind, source=SOURCE):
    return {(one.before, one.after) for one in mutate.mutations(source, 'm.py') if one.kind == kind}


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('comparison flipped', {('len(values) < limit', f'(len(values) {sign} limit)') for sign in ('>=', '<=')}),
        ('operator swapped', set()),
        ('constant changed', {('5', '6'), ('1', '2')}),
        ('condition negated', {('len(values) < limit', '(not len(values) < limit)')}),
        ('body of if skipped', {('len(values) < limit', 'False')}),
        ('returns nothing', {('total(values[1:], limit).float()', 'None')}),
        ('arguments swapped', {('total(values[1:], limit)', '(total(limit, values[1:]))')}),
        ('off by one', {('1', '(1 + 1)')}),
        ('default changed', {('5', '6')}),
        ('cast removed', {('total(values[1:], limit).float()', '(total(values[1:], limit))')}),
    ],
)  # fmt: skip
def test_each_kind_changes_its_places_and_neither_annotations_nor_errors(kind, expected):
    assert changes(kind) == expected


def test_every_change_is_python_again_and_changes_one_place():
    source = 'é = "ü"; x = f(a + b, c) or [1, 2][0:n]\nfor i in range(2, n): x = -a * (b if a else c)\n'
    found = mutate.mutations(source, 'm.py')
    assert {one.kind for one in found} >= {'operator swapped', 'off by one', 'arguments swapped', 'condition negated'}
    for one in found:
        assert source[one.start : one.end] == one.before
        assert ast.dump(ast.parse(one.apply(source))) != ast.dump(ast.parse(source))


@pytest.fixture
def project(tmp_path):
    """A repository with one function that has a test, and one that has none."""
    (tmp_path / 'mergemix_mm' / 'part').mkdir(parents=True)
    for package in ('mergemix_mm', 'mergemix_mm/part'):
        (tmp_path / package / '__init__.py').touch()
    (tmp_path / 'mergemix_mm' / 'part' / 'sums.py').write_text(
        'def add(a, b):\n    return a + b\n\n\ndef less(a, b):\n    return a - b\n'
    )
    (tmp_path / 'tests' / 'test_part').mkdir(parents=True)
    (tmp_path / 'tests' / 'test_part' / 'test_sums.py').write_text(
        'from mergemix_mm.part.sums import add\n\n\ndef test_adds():\n    assert add(2, 1) == 3\n'
    )
    return tmp_path


def test_a_change_is_found_by_its_test_or_by_none_and_the_file_is_mended(project):
    drawn = mutate.choose(project, 9, 0)
    assert drawn == mutate.choose(project, 9, 0)
    by_function = {one.names[0]: one for one in drawn}
    before = (project / 'mergemix_mm/part/sums.py').read_text()
    found = {name: mutate.examine(project, one, 300, False)[0] for name, one in by_function.items()}
    assert found == dict(add='tests/test_part/test_sums.py::test_adds', less=None)
    assert (project / 'mergemix_mm/part/sums.py').read_text() == before


def test_tests_are_looked_for_beside_the_module_then_around_it_then_by_name(project):
    assert mutate.mirrored(project, 'mergemix_mm/part/sums.py') == ['tests/test_part/test_sums.py']
    assert mutate.mirrored(project, 'mergemix_mm/part/deep/others.py') == ['tests/test_part']
    assert mutate.mirrored(project, 'mergemix_mm/paths.py') == ['tests/test_package.py']
    assert mutate.naming(project, ('_inner', 'add')) == ['tests/test_part/test_sums.py']
    assert (
        mutate.naming(project, ('add', '_Private'))
        == mutate.naming(project, ('ad',))
        == mutate.naming(project, ())
        == []
    )
