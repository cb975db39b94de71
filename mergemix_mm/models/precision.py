"""Float32 for the weights that train, beside frozen ones of low precision."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

LOW = (torch.bfloat16, torch.float16)


def widen_trained(parameters: Iterable[nn.Parameter]) -> torch.dtype | None:
    """Cast parameters that train to float32, in place: a step of 1e-5 is lost in the 8 bits of bfloat16.

    Args:
        parameters (Iterable[nn.Parameter]): Of a whole model.

    Returns:
        torch.dtype | None: the low precision of the frozen ones, if the model has both now: it runs under autocast.
    """
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.requires_grad and parameter.dtype in LOW:
            parameter.data = parameter.data.float()
    return low_beside_float32(parameters)


def low_beside_float32(parameters: Iterable[nn.Parameter]) -> torch.dtype | None:
    """The low precision that a model has beside float32: it runs under autocast. None for a model of one dtype."""
    found = {parameter.dtype for parameter in parameters}
    return next((dtype for dtype in LOW if dtype in found and len(found) > 1), None)


def autocast_to(dtype: torch.dtype | None, device_type: str) -> AbstractContextManager:
    """Autocast to `dtype`, unless that is None or the trainer has switched autocast on already."""
    if dtype is None or torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, dtype=dtype)
