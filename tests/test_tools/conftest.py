"""A tiny config on handwritten digits, and ways to run the tools: in this process, and in some that end with it."""

import contextlib
import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
import uuid

import pytest
from repository_configs import ROOT, quick_mmengine  # noqa: F401

CONFIG = """
custom_imports = dict(imports=['mergemix_mm'])
pipeline = [dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
model = dict(
    type='MixupClassifier',
    data_preprocessor=dict(num_classes=10, mean=[0, 0, 0], std=[255, 255, 255]),
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
        img_size=32,
        patch_size=8,
        drop_rate=0.1,
    ),
    head=dict(type='VisionTransformerClsHead', num_classes=10, in_channels=16),
    # Draws from torch (MergeMix), random.Random (its lambda) and numpy (Mixup, and which of the two).
    train_cfg=dict(augments=[dict(type='MergeMix'), dict(type='Mixup', alpha=1.0)], probs=[0.4, 0.4]),
)
train_dataloader = dict(
    batch_size=5,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='DigitsDataset', split='train', train_per_class=2, pipeline=pipeline),
)
val_dataloader = dict(
    batch_size=18,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='DigitsDataset', split='test', test_ratio=0.02, pipeline=[dict(type='PackInputs')]),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = dict()
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01))
train_cfg = dict(by_epoch=True, max_epochs=2)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=1))
custom_hooks = [dict(type='StepSeedHook')]
randomness = dict(seed=0)
"""


@pytest.fixture
def config(tmp_path):
    """Path of the config file: two epochs of four steps, validated on 36 digits."""
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope='session')
def load_tool():
    """Import tools/<name>.py, as a new module each time, with its folder on the path as when it is run."""

    def load(name):
        path = ROOT / 'tools' / f'{name}.py'
        spec = importlib.util.spec_from_file_location(f'tool_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(path.parent))
        return module

    return load


@pytest.fixture
def run_tool(monkeypatch, load_tool):
    """Run a tool's main() with a command line, in this process."""

    def run(name, *arguments):
        # MMEngine names logs and message hubs by the second; two runs of one test have to differ.
        options = ['--cfg-options', f'experiment_name={uuid.uuid4().hex}']
        monkeypatch.setattr(sys, 'argv', [f'tools/{name}.py', *map(str, arguments), *options])
        load_tool(name).main()

    return run


def _end_with_parent():
    """Have the kernel stop this process when pytest dies, however it dies (Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@pytest.fixture
def run_command():
    """Run a command in a process group of its own, of which nothing is left when the test ends."""

    def run(command, timeout, **kwargs):
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_parent, **pipes, **kwargs)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        finally:
            # torchrun puts its workers into groups of their own, and ends them when it is asked to stop: ask first.
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=15)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    return run
