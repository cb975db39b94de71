"""The suite of a GPU: programs that end, fail and hang, and the command lines of its own parts."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

MEASURE = """
import argparse, json, pathlib, sys, time
parser = argparse.ArgumentParser()
parser.add_argument('--device')
parser.add_argument('--quick', action='store_true')
parser.add_argument('--output', type=pathlib.Path)
args = parser.parse_args()
args.output.write_text(json.dumps(dict(rows=[vars(args)['device'], args.quick])))
print('measured')
"""


@pytest.fixture
def suite(load):
    return load('gpu_suite')


@pytest.fixture
def parts(suite, monkeypatch, tmp_path):
    """A part that ends, one that fails, one that hangs after it measured, and the tests."""
    programs = dict(ends=MEASURE, fails='raise SystemExit("no memory")', hangs=MEASURE + 'time.sleep(1000)')
    for name, code in programs.items():
        (tmp_path / f'{name}.py').write_text(code)
    parts = {name: suite.Part(name, 1, str(tmp_path / f'{name}.py')) for name in programs}
    monkeypatch.setattr(suite, 'PARTS', parts)
    return parts


def run(suite, path, *options):
    return suite.main(['--device', 'cpu', '--tiny', '--output', str(path), *options])


def test_each_part_says_how_it_ended_and_what_it_measured(suite, parts, tmp_path):
    results = run(suite, tmp_path / 'gpu.json', '--parts', 'ends', 'fails')
    assert {name: part['status'] for name, part in results.items()} == dict(ends='done', fails='exit 1')
    assert results['ends']['results'] == dict(rows=['cpu', True])
    assert results['ends']['output'] == 'measured\n'
    assert 'no memory' in results['fails']['output']
    assert 'results' not in results['fails']
    assert json.loads((tmp_path / 'gpu.json').read_text())['parts'] == results


def test_what_a_part_measured_before_its_time_was_up_is_kept(suite, parts, tmp_path, monkeypatch):
    class UpWhenMeasured(subprocess.Popen):
        def wait(self, timeout=None):
            while timeout is not None and self.poll() is None and not Path(self.args[-1]).exists():
                time.sleep(0.05)
            return super().wait(timeout and 0)

    monkeypatch.setattr(suite.subprocess, 'Popen', UpWhenMeasured)
    args = suite.parse_args(['--device', 'cpu', '--tiny', '--output', str(tmp_path / 'gpu.json')])
    part = suite.run_part('hangs', args, seconds=10)
    assert part['status'] == 'stopped after 10 s'
    assert part['results'] == dict(rows=['cpu', True])


def test_resume_runs_what_is_not_done_and_keeps_the_rest(suite, parts, tmp_path):
    path = tmp_path / 'gpu.json'
    before = run(suite, path, '--parts', 'ends', 'fails')
    Path(parts['fails'].program).write_text(MEASURE)
    Path(parts['ends'].program).write_text('raise SystemExit("ran again")')
    after = run(suite, path, '--resume', '--parts', 'ends', 'fails')
    assert after['ends'] == before['ends']
    assert after['fails']['status'] == 'done'


def test_the_suite_ends_in_time_and_names_what_it_left_out(suite, parts, tmp_path):
    results = run(suite, tmp_path / 'gpu.json', '--minutes', '0.1', '--parts', 'ends')
    assert results == dict(ends=dict(status='not run: no time left'))
    assert json.loads((tmp_path / 'gpu.json').read_text())['parts'] == results


def test_tests_are_reported_one_by_one_as_they_end(suite, tmp_path, monkeypatch):
    (tmp_path / 'test_some.py').write_text(
        'import os, signal, pytest\n'
        'pytestmark = pytest.mark.cuda\n'
        'def test_good(): pass\n'
        '@pytest.mark.parametrize("x", [1])\n'
        'def test_bad(x): assert x == 2\n'
        '@pytest.fixture\n'
        'def broken(): raise KeyError("no fixture")\n'
        'def test_broken(broken): pass\n'
        '@pytest.mark.skip\n'
        'def test_left_out(): pass\n'
        'def test_dies(): os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    report = tmp_path / 'report'
    args = suite.parse_args(['--device', 'cpu', '--tiny', '--output', str(tmp_path / 'gpu.json')])
    *command, tests = suite.command_of('tests', args, report)
    assert (suite.ROOT / tests).is_file()
    command += ['-p', 'no:cacheprovider', str(tmp_path)]
    assert suite.run(command, 1000, tmp_path / 'log', MERGEMIX_TEST_REPORT=str(report)) == -signal.SIGKILL
    results = suite.test_results(report.read_text().splitlines())
    assert (results['passed'], results['failed'], results['skipped']) == (1, 2, 1)
    assert [name.split('::')[1] for name in results['failures']] == ['test_bad[1]', 'test_broken']
    assert ['assert 1 == 2' in message for message in results['failures'].values()] == [True, False]
    assert 'no fixture' in list(results['failures'].values())[1]
    assert len(results['slowest']) == 4


def test_nothing_that_a_part_started_lives_on(suite, tmp_path):
    number = tmp_path / 'number'
    wait = f'pathlib.Path({str(number)!r}).write_text(str(os.getpid())); time.sleep(1000)'
    child = f'import os, pathlib, time; os.setsid(); {wait}'
    code = f'import pathlib, subprocess, sys, time; subprocess.Popen([sys.executable, "-c", {child!r}])'
    (tmp_path / 'program.py').write_text(
        f'{code}\nwhile not pathlib.Path({str(number)!r}).exists(): time.sleep(0.1)\ntime.sleep(0.5)\n'
    )
    assert suite.run([sys.executable, str(tmp_path / 'program.py')], 1000, tmp_path / 'log') == 0
    alive = psutil.pid_exists(int(number.read_text()))
    assert not alive or psutil.Process(int(number.read_text())).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--device', 'cpu'], '--tiny'),
        (['--minutes', '0'], '--minutes 0 must be more than 0'),
        (['--resume'], 'there is no file'),
        (['--parts', 'nothing'], "invalid choice: 'nothing'"),
    ],
)
def test_wrong_options_stop_with_one_line(suite, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        suite.parse_args(['--output', str(tmp_path / 'gpu.json'), *options])
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so(suite, tmp_path):
    with pytest.raises(SystemExit, match='no CUDA device'):
        suite.main(['--output', str(tmp_path / 'gpu.json')])
    assert not (tmp_path / 'gpu.json').exists()


@pytest.mark.parametrize('options', [['--device', 'cuda'], ['--device', 'cpu', '--tiny']], ids=['full', 'tiny'])
def test_programs_take_the_options_of_their_parts(suite, load, tmp_path, options):
    args = suite.parse_args([*options, '--output', str(tmp_path / 'gpu.json')])
    for name, part in suite.PARTS.items():
        if part.program != 'pytest':
            _, program, *given = suite.command_of(name, args, tmp_path / 'results')
            found = load(Path(program).stem).parse_args(given)
            assert (str(found.device), found.quick, found.output) == (options[1], args.tiny, tmp_path / 'results')
            assert args.tiny or ('--dtype bfloat16' in part.options and found.dtype == 'bfloat16')
