"""Tests that show what only a CUDA device can show.

Without a device they run on the CPU, so that their code is known to work before it meets one.
``MERGEMIX_CUDA_TESTS_ON`` chooses ``cuda`` or ``cpu``.
"""

import os
import random
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

PLACE = os.environ.get('MERGEMIX_CUDA_TESTS_ON') or ('cuda' if torch.cuda.is_available() else 'cpu')
# The most valuable first; an error of CUDA ends all that follows in its process, so the riskiest come last.
ORDER = (
    'functional',
    'attention',
    'mixing',
    'tuners',
    'generation',
    'runner',
    'memory',
    'determinism',
    'nccl',
    'compile',
)


def pytest_collection_modifyitems(items):
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    for item in here:
        item.add_marker(pytest.mark.cuda)
        if PLACE == 'cpu':
            item.add_marker(pytest.mark.slow)
    here.sort(key=lambda item: ORDER.index(item.path.stem.removeprefix('test_')))
    places = [index for index, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    for index, item in zip(places, here):
        items[index] = item


BROKEN = []
if PLACE == 'cuda' and torch.cuda.is_available() and 'PYTEST_XDIST_WORKER' in os.environ:
    torch.set_num_threads(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Note that the device has failed as a whole: nothing after that would tell anything."""
    report = yield
    if report.failed and 'CUDA error' in str(report.longrepr):
        BROKEN.append(item.nodeid)
        item.session.shouldstop = f'the CUDA device fails after {item.nodeid}'
    return report


def pytest_runtest_logfinish(nodeid):
    """Of several processes (pytest-xdist), let this one be replaced: the others go on."""
    if BROKEN and 'PYTEST_XDIST_WORKER' in os.environ:
        os._exit(1)


@pytest.fixture
def device():
    """The device under test."""
    return torch.device(PLACE)


@pytest.fixture(autouse=True)
def exact():
    """Float32 as the CPU computes it, and the same numbers in every run."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision('highest')
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.fixture(autouse=True)
def smolvlm_without_num2words(request, monkeypatch):
    """Its processor asks for a package that writes numbers of films as words, which no test here does."""
    if 'smolvlm' in request.node.name and find_spec('num2words') is None:
        stand_in = ModuleType('num2words')
        stand_in.num2words = str
        stand_in.__spec__ = ModuleSpec('num2words', None)
        monkeypatch.setitem(sys.modules, 'num2words', stand_in)
        from transformers.models.smolvlm import processing_smolvlm

        monkeypatch.setattr(processing_smolvlm, 'num2words', str)
