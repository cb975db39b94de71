"""Runs a test file as two processes, which talk over gloo and leave their results in a folder."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from limits import HANGS

WORLD = 2


def results_of(file, folder):
    """Run ``python file RANK folder`` once a rank; what each saved as ``folder/rank<RANK>.pth``."""
    paths = [str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]
    processes = [
        subprocess.Popen(
            [sys.executable, file, str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)), CUDA_VISIBLE_DEVICES=''),
        )
        for rank in range(WORLD)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=HANGS)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f'rank{rank}.pth', weights_only=True) for rank in range(WORLD)]


def shard(*modules):
    """torch's second FSDP on modules, the innermost first.

    Sums are divided after the reduction, since gloo of torch 2.8 gives the sum where FSDP asks it for the mean.
    """
    from torch.distributed.fsdp import fully_shard

    for module in modules:
        fully_shard(module).set_force_sum_reduction_for_comms(True)
