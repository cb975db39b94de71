"""Tests of tools/benchmarks/attention_backends.py: its rows, and what FlexAttention finds."""

import json

import pytest
import torch


@pytest.fixture
def program(load):
    return load('attention_backends')


def test_a_quick_run_measures_every_way_and_writes_it(program, tmp_path, capsys):
    path = tmp_path / 'attention.json'
    rows = program.main(['--quick', '--dtype', 'bfloat16', '--output', str(path)])
    assert json.loads(path.read_text())['rows'] == json.loads(json.dumps(rows))
    cases = {(row['width'], row['task']) for row in rows}
    assert cases == {(8, 'gen'), (16, 'gen'), (8, 'und')}
    for row in rows:
        if row['way'] == program.FLEX and 'error' in row:  # Newer torch: its backward needs a GPU.
            assert 'does not support backward on CPU' in row['error']
            continue
        assert len(row['milliseconds']) == 1 and row['memory_mb'] > 0
        assert row['errors']['output'] < 0.01
        if row['way'] != program.PLAIN:
            assert row['errors']['intensity'] < 2e-3
            assert max(value for name, value in row['errors'].items() if name != 'intensity') < 0.02
    assert '| width | length | task | kernel | way ' in capsys.readouterr().out


def test_on_a_gpu_every_kernel_is_tried_and_what_compiles_comes_last(program):
    cases = program.cases(program.parse_args(['--device', 'cuda']))
    assert [(case.width, case.length) for case in cases[:3]] == [(64, 2304), (128, 2304), (96, 2304)]
    assert {case.kernel for case in cases} == {'picked', 'flash', 'cudnn', 'efficient'}
    assert {case.length for case in cases} == {1152, 2304, 4608}
    assert ['flex_attention' in case.ways for case in cases] == [False] * (len(cases) - 3) + [True] * 3


@pytest.mark.parametrize('task', ['gen', 'und'])
def test_flex_attention_finds_the_intensity_of_the_maps(program, task):
    args = program.parse_args(['--quick'])
    inputs = program.Inputs(args, program.Case(16, 48, task), 2, 48)
    with torch.no_grad():
        inputs.tensors = [tensor.detach() for tensor in inputs.tensors]
        torch.testing.assert_close(program.forward(inputs, program.FLEX), program.forward(inputs, program.MAPS))


def test_ways_that_cannot_run_say_why_and_the_others_are_measured(program, monkeypatch, tmp_path):
    def forward(inputs, way):
        if way == 'lse':
            raise RuntimeError('No available kernel.\nAborting')
        return original(inputs, way)

    original = program.forward
    monkeypatch.setattr(program, 'forward', forward)
    rows = program.main(['--quick', '--widths', '8', '--ways', 'fused', 'lse'])
    errors = {row['way']: row.get('error') for row in rows if row['task'] == 'gen'}
    assert errors == dict(fused=None, lse='RuntimeError: No available kernel.')


def test_a_prompt_as_long_as_the_image_is_refused(program, capsys):
    with pytest.raises(SystemExit):
        program.parse_args(['--prompt', '300', '--lengths', '1152'])
    assert '--prompt 300 must be at most a quarter' in capsys.readouterr().err
