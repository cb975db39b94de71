"""The tests for a CUDA device: skipped where there is none, and their code works, as it does on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from limits import HANGS

TESTS = Path(__file__).parent


def run(*arguments, **environment):
    command = [sys.executable, '-m', 'pytest', '-q', '-rs', '--show-capture=no', '-p', 'no:cacheprovider', *arguments]
    env = dict(os.environ, CUDA_VISIBLE_DEVICES='', **environment)
    return subprocess.run(command, env=env, cwd=TESTS.parent, capture_output=True, text=True, timeout=HANGS)


@pytest.mark.slow
def test_they_pass_on_the_cpu():
    done = run('-m', 'cuda', str(TESTS / 'test_cuda'), MERGEMIX_CUDA_TESTS_ON='cpu')
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.skipif('MERGEMIX_CUDA_TESTS_ON' in os.environ or torch.cuda.is_available(), reason='they run here')
def test_they_are_skipped_with_the_reason():
    done = run(str(TESTS / 'test_cuda' / 'test_functional.py'))
    assert done.returncode == 0 and 'passed' not in done.stdout
    assert 'needs a CUDA device' in done.stdout
