"""The flags of MMPretrain's tools/train.py and tools/test.py are flags here, with the same values and defaults."""

import argparse
import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

THEIRS = Path(find_spec('mmpretrain').origin).parent / '.mim' / 'tools'


def declared(tool):
    """The calls of add_argument in MMPretrain's tool, as a parser of its own."""
    parser = argparse.ArgumentParser()
    for node in ast.walk(ast.parse((THEIRS / f'{tool}.py').read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'add_argument':
            # DictAction is read as a plain value: the number of values stays.
            kept = [keyword for keyword in node.keywords if ast.unparse(keyword.value) != 'DictAction']
            call = ast.Call(ast.Name('add', ast.Load()), node.args, kept)
            eval(compile(ast.fix_missing_locations(ast.Expression(call)), tool, 'eval'), dict(add=parser.add_argument))
    return parser


def actions(parser):
    """How each flag takes its values, by option string (or place, for positional arguments)."""
    return {
        name: (action.dest, action.nargs, action.const, action.default, action.choices, action.type or str)
        for action in parser._actions
        for name in action.option_strings or [action.dest]
    }


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_every_flag_of_mmpretrain_is_taken_in_the_same_way(tool, load_tool, monkeypatch):
    theirs, parsers = actions(declared(tool)), []
    parse = argparse.ArgumentParser.parse_args

    def record(parser, arguments):
        parsers.append(parser)
        return parse(parser, arguments)

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', record)
    load_tool(tool).parse_args(['config.py', 'checkpoint.pth'] if tool == 'test' else ['config.py'])
    ours = actions(parsers[0])
    assert len(theirs) > 8
    assert {name: ours.get(name) for name in theirs} == theirs
