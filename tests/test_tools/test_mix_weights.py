"""Tests of tools/mix_weights.py: what it writes and prints, and that errors name the argument."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def mix(load_tool, tmp_path, monkeypatch):
    """Run the tool in a folder with two models."""
    monkeypatch.chdir(tmp_path)
    for name, value in (('real', 1.0), ('syn', 3.0)):
        weights = {f'{part}.weight': torch.full((2, 2), value) for part in ('body', 'head')}
        save_file(weights, f'{name}.safetensors', dict(format='pt'))
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').write_text(name)
        save_file(weights, tmp_path / name / 'model.safetensors', dict(format='pt'))
    return lambda *arguments: load_tool('mix_weights').main([str(argument) for argument in arguments])


def values(path):
    return {name: tensor.unique().tolist() for name, tensor in load_file(path).items()}


def test_two_folders_become_one(mix, tmp_path, capsys):
    mix('real', 'syn', 'out', '--beta', 0.75)
    assert values('out/model.safetensors') == {'body.weight': [1.5], 'head.weight': [1.5]}
    assert (tmp_path / 'out' / 'config.json').read_text() == 'real'
    printed = capsys.readouterr()
    assert '2 tensors mixed and 0 taken from real, written to out' in printed.out
    assert 'mixing: 100%' in printed.err and '32.0/32.0' in printed.err


def test_two_files_become_one_with_what_is_chosen(mix):
    mix(
        'real.safetensors',
        'syn.safetensors',
        'out.safetensors',
        '--beta',
        0.5,
        '--include',
        'weight',
        '--exclude',
        '^head',
    )
    assert values('out.safetensors') == {'body.weight': [2.0], 'head.weight': [1.0]}
    record = json.loads(Path('out.safetensors.json').read_text())
    assert (record['include'], record['exclude'], record['mixed'], record['copied']) == ('weight', '^head', 1, 1)


def test_mismatches_are_listed_with_the_way_out_and_nothing_is_written(mix, tmp_path):
    save_file({'body.weight': torch.ones(2), 'other': torch.ones(1)}, 'syn.safetensors')
    before = set(tmp_path.rglob('*'))
    with pytest.raises(SystemExit) as caught:
        mix('real', 'syn.safetensors', 'out', '--beta', 0.5)
    assert str(caught.value) == (
        'REAL, SYN: the weights cannot be mixed (3 problems):\n'
        '  other: only in synthetic\n'
        '  body.weight: float32 [2, 2] in real, float32 [2] in synthetic\n'
        '  head.weight: only in real\n'
        'What --include or --exclude leaves out is taken from REAL and is not compared.'
    )
    assert set(tmp_path.rglob('*')) == before
    with pytest.raises(SystemExit, match='body.weight: .*in real'):
        mix('real', 'syn.safetensors', 'out', '--beta', 0.5, '--exclude', 'head|other')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('real', 'syn', 'out', '--beta', 1.5), r'--beta: beta=1.5 must be in \[0, 1\]'),
        (('real', 'syn', 'out', '--beta', 0.5, '--include', '('), r'--include: include=.\(. is not a regular'),
        (('real', 'syn', 'out', '--beta', 0.5, '--exclude', '('), r'--exclude: exclude=.\(. is not a regular'),
        (('real', 'syn', 'out', '--beta', 0.5, '--include', 'tail'), 'REAL, SYN: .*none of the 2 names'),
        (('none', 'syn', 'out', '--beta', 0.5), 'REAL: there is no file or folder none'),
        (('real', 'syn/config.json', 'out', '--beta', 0.5), 'SYN: .*config.json is of an unknown kind'),
        (('real', 'syn', 'real', '--beta', 0.5), 'OUT: .* lie in one another'),
        (('real.safetensors', 'syn', 'out.pth', '--beta', 0.5), 'OUT: .* has to end in .safetensors'),
    ],
)
def test_errors_name_the_argument(mix, arguments, message):
    with pytest.raises(SystemExit, match=f'(?s){message}'):
        mix(*arguments)
