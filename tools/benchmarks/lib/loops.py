"""The loops of the benchmarks that train a tuner: over batches in turn, and one step again and again to be timed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle, islice

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from .runs import warmup_cosine

Batch = dict[str, Tensor | str]


def rows(batch: Batch, chosen: Tensor) -> Batch:
    """Some rows of a batch in which every row has one image, or none has."""
    return {key: value[chosen] if torch.is_tensor(value) else value for key, value in batch.items()}


def random_rows(batches: Iterable[Batch], batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless batches of rows drawn at random, from each of these in turn."""
    order = torch.Generator().manual_seed(seed)
    for batch in cycle(batches):
        yield rows(batch, torch.randint(len(batch['input_ids']), (batch_size,), generator=order))


def fit(tuner: BaseModel, batches: Iterator[Batch], steps: int, optimizer: Mapping, max_norm: float) -> None:
    """Train what is not frozen: warm-up over a tenth of the steps, cosine decay, clipped gradients.

    Args:
        tuner (BaseModel): Trained in place.
        batches (Iterator[dict]): One per step.
        steps (int): Number of steps.
        optimizer (Mapping): Options of AdamW, as a config's ``optimizer`` has them.
        max_norm (float): Of the gradients.
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


def idle_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW over what is not frozen, at learning rate 0: arms that take turns find the same weights in each step.

    Gradients and moments are allocated. On a GPU it is fused, which needs no further memory.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=parameters[0].is_cuda)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def training_step(
    losses: Callable[[], dict[str, Tensor]], optimizer: torch.optim.Optimizer
) -> Callable[[], dict[str, Tensor]]:
    """Forward, backward and update of one batch, to be called again and again.

    Args:
        losses (Callable): The forward; what a tuner's ``loss`` returns.
        optimizer (torch.optim.Optimizer): Of the model.

    Returns:
        Callable: takes a step and returns the losses; gradients stay until the next one.
    """

    def step() -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=False)  # Gradients stay allocated, as they are not what the arms differ in.
        found = losses()
        sum(value for key, value in found.items() if 'loss' in key).backward()
        optimizer.step()
        return {key: value.detach() for key, value in found.items()}

    return step
