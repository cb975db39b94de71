"""The loops of benchmarks that train: batches in turn, the schedule, and the training of a tuner."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle, islice
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

Batch = dict[str, Any]


def rows(batch: Batch, chosen: Tensor) -> Batch:
    """Some rows of a batch in which either every row has one image or no row has any."""
    return {key: value[chosen] if torch.is_tensor(value) else value for key, value in batch.items()}


def random_rows(batches: Iterable[Batch], batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless batches of rows drawn at random, from each of these batches in turn."""
    order = torch.Generator().manual_seed(seed)
    for batch in cycle(batches):
        yield rows(batch, torch.randint(len(batch['input_ids']), (batch_size,), generator=order))


def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule that warms up over a tenth of the steps and then follows the cosine to 0."""
    warmup = max(steps // 10, 1)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )


def fit(tuner: BaseModel, batches: Iterator[Batch], steps: int, optimizer: Mapping[str, Any], max_norm: float) -> None:
    """Train the weights that are not frozen, with the schedule of :func:`warmup_cosine` and clipped gradients.

    Args:
        tuner (BaseModel): Trained in place.
        batches (Iterator[dict]): One for each step.
        steps (int): Number of steps.
        optimizer (Mapping): Options of AdamW, as the ``optimizer`` of a config has them.
        max_norm (float): The norm that gradients are clipped to.
    """
    parameters = [parameter for parameter in tuner.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(parameters, **{key: value for key, value in optimizer.items() if key != 'type'})
    schedule = warmup_cosine(adamw, steps)
    tuner.train()
    for batch in islice(batches, steps):
        loss, _ = tuner.parse_losses(tuner.loss(batch))
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, max_norm)
        adamw.step()
        schedule.step()
