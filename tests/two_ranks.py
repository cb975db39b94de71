"""Runs a test file as two processes, which talk over gloo and leave their results in a folder."""

import os
import socket
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
    outputs = []
    try:
        for process in processes:
            failed = any(one.returncode for one in processes)
            try:
                outputs.append(process.communicate(timeout=60 if failed else HANGS)[0])
            except subprocess.TimeoutExpired:
                if not failed:
                    raise
                outputs.append('It waits.')
        texts = [f'process {rank}: {output[-3000:]}' for rank, output in enumerate(outputs)]
        assert not any(process.returncode for process in processes), '\n'.join(texts)
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f'rank{rank}.pth', weights_only=True) for rank in range(WORLD)]


def free_port():
    """A port of this machine that nothing listens on, as text."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def sharded(model, folder, optim=None, **options):
    """A model that the strategy of configs/_base_/strategies/fsdp.py has sharded, and the wrapper of its optimizer."""
    from mmengine.config import Config
    from mmengine.registry import STRATEGIES

    import mergemix_mm

    cfg = Config.fromfile(mergemix_mm.config_path('_base_/strategies/fsdp.py')).strategy
    strategy = STRATEGIES.build(dict(cfg, work_dir=f'{folder}/strategy', log_kwargs=dict(log_level='ERROR'), **options))
    optim = dict(optimizer=dict(type='SGD', lr=1.0)) if optim is None else optim
    return strategy.prepare(model, optim_wrapper=optim)


def whole(tensor):
    """A copy of a tensor, put together if it is sharded."""
    return (tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor).detach().clone()
