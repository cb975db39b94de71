"""A tiny config on handwritten digits, and a way to run the tools without a new process."""

import importlib.util
import sys
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CONFIG = """
custom_imports = dict(imports=['mergemix_mm'])
pipeline = [dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255]),
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
        img_size=32,
        patch_size=8,
        drop_rate=0.1,
    ),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=16),
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


def load_tool(name):
    """Import tools/<name>.py."""
    spec = importlib.util.spec_from_file_location(f'tool_{Path(name).stem}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_tool(monkeypatch):
    """Run a tool's main() with a command line, in this process."""

    def run(name, *arguments):
        # MMEngine names logs and message hubs by the second; two runs of one test have to differ.
        options = ['--cfg-options', f'experiment_name={uuid.uuid4().hex}']
        monkeypatch.setattr(sys, 'argv', [f'tools/{name}.py', *map(str, arguments), *options])
        load_tool(name).main()

    return run
