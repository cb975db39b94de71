"""A Runner of a few steps whose data, model and validation draw random numbers, for tests of saving and resuming."""

import random
import uuid

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mergemix_mm.engine.hooks import StepSeedHook


class NoisyDataset(Dataset):
    """Sixteen samples with a random transform from each of the three generators."""

    metainfo = dict(name='noisy')

    def __len__(self):
        return 16

    def __getitem__(self, index):
        noise = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
        return dict(inputs=torch.full((3,), index / 16.0) + noise)


class DropoutModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, inputs, mode='tensor'):
        output = self.net(torch.stack(inputs))
        return dict(loss=output.square().mean()) if mode == 'loss' else [output]


class GreedyMetric(BaseMetric):
    """Draws random numbers during validation."""

    def process(self, data_batch, data_samples):
        torch.rand(7), np.random.rand(7), random.random()
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(count=len(results))


class Kill(Hook):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise KeyboardInterrupt


def build(
    work_dir,
    *,
    workers=0,
    seed=0,
    hooks=None,
    validate=True,
    sampler=None,
    checkpoint=None,
    runner=Runner,
    optim=None,
    model=None,
    **kwargs,
):
    """A Runner of three epochs with four steps each."""
    base = dict(dataset=NoisyDataset(), batch_size=4, num_workers=workers)
    val_loader = dict(base, sampler=dict(type='DefaultSampler', shuffle=False))
    validation = dict(val_dataloader=val_loader, val_cfg=dict(), val_evaluator=[GreedyMetric()]) if validate else {}
    kwargs.setdefault('train_cfg', dict(by_epoch=True, max_epochs=3))
    torch.manual_seed(0)  # the first weights are not what is tested
    return runner(
        model or DropoutModel(),
        work_dir=str(work_dir),
        train_dataloader=dict(base, persistent_workers=workers > 0, sampler=sampler or dict(type='DefaultSampler')),
        optim_wrapper={'optimizer': dict(type='AdamW', lr=0.1), **(optim or {})},
        **validation,
        default_hooks=dict(checkpoint={'type': 'CheckpointHook', 'interval': 1, **(checkpoint or {})}, logger=None),
        custom_hooks=[StepSeedHook()] if hooks is None else hooks,
        randomness=dict(seed=seed),
        experiment_name=uuid.uuid4().hex,
        log_level='ERROR',
        **kwargs,
    )


def train(runner):
    """Train until the end or until killed, and hand back all weights."""
    try:
        runner.train()
    except KeyboardInterrupt:
        assert any(isinstance(hook, Kill) for hook in runner.hooks)
    runner.train_dataloader._iterator = None  # workers that wait for the garbage collector take 5 s each to stop
    return torch.cat([parameter.detach().flatten() for parameter in runner.model.parameters()])
