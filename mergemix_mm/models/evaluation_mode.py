"""The state in which a model scores patches or generates images in the middle of its training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module, device_type: str) -> Iterator[None]:
    """Run a model in eval mode and without gradient, and leave it exactly as it was.

    Args:
        model (nn.Module): The model.
        device_type (str): Where it runs (``'cuda'``, ``'cpu'``, ...).
    """
    # Flags are set one by one, because some backbones override train() and eval() and freeze stages in them.
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), uncached_autocast(device_type):
            yield
    finally:
        for module in training:
            module.training = True


def uncached_autocast(device_type: str) -> torch.autocast:
    """Autocast as it is set, on or off, without its cache of weights.

    Autocast caches the low-precision copy of a weight on first use. A copy made without gradient would be used again in
    the training pass and cut the weights off from their gradient.
    """
    return torch.autocast(
        device_type,
        dtype=torch.get_autocast_dtype(device_type),
        enabled=torch.is_autocast_enabled(device_type),
        cache_enabled=False,
    )
