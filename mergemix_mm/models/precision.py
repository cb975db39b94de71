"""Float32 for weights that train, beside frozen weights of low precision."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

LOW = (torch.bfloat16, torch.float16)


def widen_trained(parameters: Iterable[nn.Parameter]) -> torch.dtype | None:
    """Cast parameters that train to float32, in place: the 8 significant bits of bfloat16 would lose a step of 1e-5.

    Args:
        parameters (Iterable[nn.Parameter]): All parameters of a model.

    Returns:
        torch.dtype | None: As from :func:`low_beside_float32`.
    """
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.requires_grad and parameter.dtype in LOW:
            parameter.data = parameter.data.float()
    return low_beside_float32(parameters)


def low_beside_float32(parameters: Iterable[nn.Parameter]) -> torch.dtype | None:
    """The low precision of a model that also has float32 weights and so needs autocast; None for one dtype."""
    found = {parameter.dtype for parameter in parameters}
    return next((dtype for dtype in LOW if dtype in found and len(found) > 1), None)


def autocast_to(dtype: torch.dtype | None, device_type: str) -> AbstractContextManager:
    """Autocast to `dtype`, unless that is None or the trainer has already switched autocast on."""
    if dtype is None or torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, dtype=dtype)


def cast_at_norms(module: nn.Module) -> None:
    """Let layer norms of low precision accept float32 inputs on a CPU, which autocast only handles on a GPU.

    Such inputs come from a part that trains and precedes a frozen part.

    Args:
        module (nn.Module): The module that contains the norms.
    """
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.register_forward_pre_hook(_in_own_dtype)


def _in_own_dtype(norm: nn.LayerNorm, inputs: tuple) -> tuple | None:
    own, (found, *_) = norm.weight, inputs
    mixed = own is not None and own.dtype in LOW and found.dtype == torch.float32
    return (found.to(own.dtype),) if mixed and found.device.type == 'cpu' else None
