"""Break lines of the package at random, one at a time, and see which tests find it.

``python tests/mutation/mutate.py --count 10 --seed 0`` works on a copy of the repository. The tests that mirror the
module run first. If they pass, those whose code names the function or class around the line follow, and with ``--all``
the whole fast suite. What no test finds lacks a test or makes no difference: the last lines show it, to be judged.
"""

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = 'mergemix_mm'
NOT_COPIED = shutil.ignore_patterns('.*', '__pycache__', 'work_dirs', 'data', 'build', 'dist', '*.egg-info', '_build')
OPPOSITE = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
BOUNDARY = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}
CASTS = {'to', 'float', 'double', 'half', 'bool', 'long', 'int', 'type_as', 'detach', 'contiguous', 'clone', 'cpu'}


@dataclass(frozen=True)
class Mutation:
    """One change of a file.

    Args:
        path (str): The file, relative to the repository.
        line (int): Its line, from 1.
        kind (str): The kind of change, a key of `KINDS`.
        start (int): First character that is replaced.
        end (int): The character after the last one.
        before (str): What is replaced.
        after (str): What replaces it.
        names (tuple[str, ...]): The function and class around it, innermost first.
    """

    path: str
    line: int
    kind: str
    start: int
    end: int
    before: str
    after: str
    names: tuple[str, ...]

    def apply(self, source: str) -> str:
        """The text of the file with the change."""
        return source[: self.start] + self.after + source[self.end :]


def _comparison(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for table in (OPPOSITE, BOUNDARY):
            if type(node.ops[0]) in table:
                yield node, _with(node, ops=[table[type(node.ops[0])]()])


def _operator(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPPED:
        yield node, _with(node, op=SWAPPED[type(node.op)]())


def _constant(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        changed = not node.value if isinstance(node.value, bool) else node.value + 1
        yield node, ast.Constant(changed)


def _condition(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)


def _skipped(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.If) and not any(isinstance(one, ast.NamedExpr) for one in ast.walk(node.test)):
        yield node.test, ast.Constant(False)


def _returned(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Return) and node.value is not None:
        yield node.value, ast.Constant(None)


def _arguments(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        first, second, *rest = node.args
        if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
            yield node, _with(node, args=[second, first, *rest])


def _bound(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    ends = [node.lower, node.upper] if isinstance(node, ast.Slice) else []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'range':
        ends = node.args[:2]
    for end in ends:
        if end is not None and not isinstance(end, ast.Starred):
            yield end, ast.BinOp(end, ast.Add(), ast.Constant(1))


def _default(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.arguments):
        for value in filter(None, (*node.defaults, *node.kw_defaults)):
            yield from _constant(value)


def _cast(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CASTS:
        yield node, node.func.value


KINDS: dict[str, Callable[[ast.AST], Iterator[tuple[ast.AST, ast.AST]]]] = {
    'comparison flipped': _comparison,
    'operator swapped': _operator,
    'constant changed': _constant,
    'condition negated': _condition,
    'body of if skipped': _skipped,
    'returns nothing': _returned,
    'arguments swapped': _arguments,
    'off by one': _bound,
    'default changed': _default,
    'cast removed': _cast,
}


def _with(node: ast.AST, **fields) -> ast.AST:
    changed = deepcopy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def mutations(source: str, path: str) -> list[Mutation]:
    """All changes of a file that can be made.

    Annotations, decorators and what only words an error are left out, since their changes break nothing.
    """
    offsets = [0]
    for line in source.encode().split(b'\n'):
        offsets.append(offsets[-1] + len(line) + 1)
    content, found = source.encode(), []

    def place(line: int, column: int) -> int:
        return len(content[: offsets[line - 1] + column].decode())

    def visit(node: ast.AST, names: tuple[str, ...]) -> None:
        for kind, change in KINDS.items():
            for old, new in change(node):
                start, end = place(old.lineno, old.col_offset), place(old.end_lineno, old.end_col_offset)
                after = ast.unparse(ast.fix_missing_locations(new))
                after = f'({after})' if isinstance(new, ast.expr) and not isinstance(new, ast.Constant) else after
                if ast.dump(ast.parse(f'({source[start:end]})')) != ast.dump(ast.parse(after)):
                    found.append(Mutation(path, old.lineno, kind, start, end, source[start:end], after, names))
        for name, value in ast.iter_fields(node):
            if name in ('annotation', 'returns', 'decorator_list', 'type_comment', 'format_spec'):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.JoinedStr | ast.Assert):
                    inner = isinstance(child, ast.FunctionDef | ast.ClassDef)
                    visit(child, (child.name, *names) if inner else names)

    visit(ast.parse(source), ())
    return found


def choose(root: Path, count: int, seed: int, only: Sequence[str] = ()) -> list[Mutation]:
    """Draw changes of all kinds in turn, from all files of the package or those whose path holds one of `only`."""
    paths = [path.relative_to(root).as_posix() for path in sorted((root / PACKAGE).rglob('*.py'))]
    paths = [path for path in paths if not only or any(part in path for part in only)]
    known = [one for path in paths for one in mutations((root / path).read_text(), path)]
    rng, drawn = random.Random(seed), []
    kinds = rng.sample(list(KINDS), len(KINDS))
    while len(drawn) < count and known:
        kind = kinds[len(drawn) % len(kinds)]
        drawn.append(rng.choice([one for one in known if one.kind == kind] or known))
        known = [one for one in known if (one.path, one.line) != (drawn[-1].path, drawn[-1].line)]
    return drawn


def mirrored(root: Path, path: str) -> list[str]:
    """The tests of a module: the file of its name, or else of the nearest folder around it."""
    *folders, name = Path(path).relative_to(PACKAGE).with_suffix('').parts
    place = Path('tests', *(f'test_{folder}' for folder in folders))
    if (root / place / f'test_{name}.py').exists():
        return [(place / f'test_{name}.py').as_posix()]
    while not (root / place).is_dir():
        place = place.parent
    return [place.as_posix()] if place != Path('tests') else ['tests/test_package.py']


def naming(root: Path, names: Sequence[str]) -> list[str]:
    """The files of tests whose code names the outermost function or class around a line; none for a private one."""
    if not names or names[-1].startswith('_'):
        return []
    found = []
    for file in sorted((root / 'tests').rglob('test_*.py')):
        if 'test_cuda' in file.parts:
            continue
        text = file.read_text()
        # In the code or as a registered name in a config: comments and sentences do not count.
        if names[-1] in text and any(names[-1] in _words(node) for node in ast.walk(ast.parse(text))):
            found.append(file.relative_to(root).as_posix())
    return found


def _words(node: ast.AST) -> tuple:
    return tuple(getattr(node, name, None) for name in ('id', 'attr', 'name', 'value'))


def run_tests(root: Path, tests: Sequence[str], limit: float) -> str | None:
    """Run tests until the first fails: its name, None if all pass, or what else ended them."""
    command = [
        sys.executable,
        '-m',
        'pytest',
        '-x',
        '-q',
        '-rfE',
        '--tb=no',
        '-p',
        'no:cacheprovider',
        '-m',
        'not slow',
    ]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    env = dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
    try:
        done = subprocess.run([*command, *tests], cwd=root, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f'no end after {limit:.0f} s'
    if done.returncode in (0, 5):  # 5: there is no test.
        return None
    failed = re.search(r'^(?:FAILED|ERROR) (\S+)', done.stdout, re.MULTILINE)
    return failed[1] if failed else f'exit status {done.returncode}'


def examine(root: Path, mutation: Mutation, limit: float, everything: bool) -> tuple[str | None, float]:
    """Break a line of a copy of the repository, run tests, and mend it: the test that found it, and the seconds."""
    path, start = root / mutation.path, time.monotonic()
    source = path.read_text()
    path.write_text(mutation.apply(source))
    try:
        first = mirrored(root, mutation.path)
        found = run_tests(root, first, limit)
        rest = [test for test in naming(root, mutation.names) if test not in first]
        if found is None and rest:
            found = run_tests(root, rest, limit)
        if found is None and everything:
            found = run_tests(root, ['tests'], 10 * limit)
    finally:
        path.write_text(source)
    return found, time.monotonic() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the number of changes that no test found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=10, help='changes (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='another seed draws others (default: %(default)s)')
    parser.add_argument('--only', nargs='+', default=(), metavar='PART', help='only files whose path holds a part')
    parser.add_argument('--limit', type=float, default=600, help='seconds for each run of tests (default: %(default)s)')
    parser.add_argument('--all', action='store_true', help='the whole fast suite for what the nearest tests let pass')
    parser.add_argument('--list', action='store_true', help='only show the changes')
    args = parser.parse_args(argv)
    drawn, left = choose(ROOT, args.count, args.seed, args.only), []
    print('| place | kind | before | after | found by | s |\n| :-- | :-- | :-- | :-- | :-- | --: |')
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / 'repository'
        if not args.list:
            shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        for one in drawn:
            found, seconds = ('-', 0.0) if args.list else examine(copy, one, args.limit, args.all)
            left += [one] if found is None else []
            texts = [' '.join(text.split()).replace('|', '\\|')[:60] for text in (one.before, one.after)]
            row = (f'{one.path}:{one.line}', one.kind, *(f'`{text}`' for text in texts), found or '**nothing**')
            print('|', ' | '.join(row), f'| {seconds:.0f} |', flush=True)
    for one in left:
        print(
            f'\nNo test found this. Is a test missing, or does it make no difference?\n{one.path}:{one.line} {one.kind}'
        )
        lines = (ROOT / one.path).read_text().splitlines()[max(one.line - 4, 0) : one.line + 3]
        print('\n'.join(f'    {line}' for line in lines), f'\n  {one.before!r} -> {one.after!r}')
    return len(left)


if __name__ == '__main__':
    sys.exit(min(main(), 1))
