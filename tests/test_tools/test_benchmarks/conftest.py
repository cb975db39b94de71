"""Programs of tools/benchmarks as modules."""

import gc
import importlib

import pytest
import torch
from repository_configs import ROOT


@pytest.fixture
def load(monkeypatch):
    """Import a program of tools/benchmarks, or a module of its lib, by name."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'benchmarks'))
    threads = torch.get_num_threads()
    gc.freeze()  # Each measurement of memory collects garbage, which takes a second with all that the tests import.
    yield importlib.import_module
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture
def cells():
    """The cells of the lines of a table in Markdown."""
    return lambda table: [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()]
