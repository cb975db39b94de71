"""The two layers: imports point downwards only (architecture.md, section 1)."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'mergemix_mm'
# The parts of the package that each part may import, besides itself.
ALLOWED = {
    'functional': set(),
    'utils': set(),
    'families': {'functional', 'utils'},
    'visualization': {'functional', 'models', 'utils'},
    'models': {'functional', 'families', 'utils'},
    'datasets': {'functional', 'families', 'utils'},
    'evaluation': {'functional', 'visualization', 'utils'},
    'engine': {'functional', 'families', 'models', 'visualization', 'utils'},
    # What is drawn or bundled stands on top: only the package itself, demo, tests and studies know it.
    'toy': {'functional', 'families', 'models', 'datasets', 'evaluation', 'utils'},
}


def imported_modules(path: Path) -> list[str]:
    """Absolute names of everything that a file imports anywhere, with relative imports resolved."""
    package = list(path.relative_to(ROOT).parent.parts)
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *filter(None, [node.module])])
            names += [f'{module}.{alias.name}' for alias in node.names]
    return names


def own_part(name: str) -> str | None:
    parts = name.split('.')
    return parts[1] if parts[0] == 'mergemix_mm' and len(parts) > 1 else None


def files(part: str) -> list[Path]:
    found = sorted((PACKAGE / part).rglob('*.py'))
    assert found, f'no file in {PACKAGE / part}'
    return found


@pytest.mark.parametrize('path', files('functional'), ids=lambda path: path.stem)
def test_functional_imports_torch_and_the_standard_library_only(path):
    foreign = (
        {name.split('.')[0] for name in imported_modules(path)} - {'torch', 'mergemix_mm'} - sys.stdlib_module_names
    )
    assert not foreign


@pytest.mark.parametrize('part', ALLOWED)
def test_a_part_imports_only_what_lies_below_it(part):
    for path in files(part):
        used = {own_part(name) for name in imported_modules(path)} - {None, part, 'paths', 'version', 'moved'}
        assert used <= ALLOWED[part], f'{path.relative_to(ROOT)} imports {sorted(used - ALLOWED[part])}'


def test_no_files_import_each_other_in_a_circle():
    """Imports for types only count as well: what is written in terms of each other belongs together."""
    modules = {'.'.join(path.relative_to(ROOT).with_suffix('').parts): path for path in PACKAGE.rglob('*.py')}
    edges = {}
    for module, path in modules.items():
        names = imported_modules(path)
        edges[module] = {one for name in names for one in (name, name.rpartition('.')[0]) if one in modules}
    while leaves := {module for module in edges if not edges[module] & set(edges)}:
        edges = {module: used for module, used in edges.items() if module not in leaves}
    assert not edges


def test_the_package_names_its_own_parts_relatively():
    for path in PACKAGE.rglob('*.py'):
        assert not re.search(r'^\s*(from|import) mergemix_mm\b', path.read_text(), re.MULTILINE), path


def test_no_tool_for_users_imports_what_is_drawn():
    for folder in ('tools', 'projects'):
        for path in (ROOT / folder).rglob('*.py'):
            uses_toy = 'toy' in {own_part(name) for name in imported_modules(path)}
            # Benchmarks and the demos of the projects run on drawn data; whatever reads real data does not know it.
            demo = path.name.startswith('shapes_') or path == ROOT / 'projects/new_task/run.py'
            allowed = path.is_relative_to(ROOT / 'tools/benchmarks') or demo
            assert allowed or not uses_toy, path


def test_readers_of_files_know_nothing_of_what_is_made_of_their_records():
    for path in files('datasets/io'):
        inside = [name for name in imported_modules(path) if name.startswith('mergemix_mm.datasets')]
        assert all(name.startswith('mergemix_mm.datasets.io') for name in inside), (path, inside)


def test_every_part_has_a_rule():
    parts = {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
    assert parts == set(ALLOWED)


def test_no_file_of_the_package_imports_configs_or_tools():
    for path in PACKAGE.rglob('*.py'):
        roots = {name.split('.')[0] for name in imported_modules(path)}
        assert not roots & {'configs', 'tools', 'tests'}, path


def test_every_file_opens_with_a_sentence():
    for path in [*PACKAGE.rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]:
        assert (ast.get_docstring(ast.parse(path.read_text())) or '').strip(), path


def test_the_drawn_tree_of_the_documentation_is_that_of_the_package():
    tree = re.search(r'```text\n(mergemix_mm/\n.*?)```', (ROOT / 'docs/architecture.md').read_text(), re.DOTALL)[1]
    drawn, folder = set(), []
    for found in re.finditer(r'^((?:│   |    )*)[├└]── (\S+)', tree, re.MULTILINE):
        folder = [*folder[: len(found[1]) // 4], found[2].rstrip('/')]
        drawn.add('/'.join(folder))
    assert not {name for name in drawn if not (PACKAGE / name).exists()}
    parts = {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').exists()}
    rooms = {f'{part}/{path.parent.name}' for part in parts for path in (PACKAGE / part).glob('*/__init__.py')}
    modules = {f'functional/{path.name}' for path in files('functional')} - {'functional/__init__.py'}
    assert parts | rooms | modules <= drawn
