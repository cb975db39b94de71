"""Float32 for weights that train, beside frozen weights of low precision."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

LOW = (torch.bfloat16, torch.float16)
# Attribute of a model of transformers whose weights still have the dtype of their files: the dtype that was asked for.
WANTED = 'wanted_dtype'
_keeps_files = False


@contextmanager
def weights_as_in_files() -> Iterator[None]:
    """Let models that are built in this block keep the dtype of their files until :func:`wanted_dtypes` is applied.

    The weights of safetensors then stay mapped to their files: they take no memory of the process, and only what is
    read comes from the disk. A strategy that shards a model casts its shards later.
    """
    global _keeps_files
    before, _keeps_files = _keeps_files, True
    try:
        yield
    finally:
        _keeps_files = before


def keeps_files() -> bool:
    """Whether a model that is built now keeps the dtype of its files."""
    return _keeps_files


def wanted_dtypes(model: nn.Module) -> dict[nn.Parameter, torch.dtype]:
    """The parameters that still have another dtype than the one they should have, with the latter.

    Args:
        model (nn.Module): A model that was built in :func:`weights_as_in_files`, or that holds such models.
    """
    wanted: dict[nn.Parameter, torch.dtype] = {}
    for module in model.modules():
        if (dtype := getattr(module, WANTED, None)) is not None:
            # What the library keeps in float32 whatever dtype it is asked for.
            keys = ('_keep_in_fp32_modules', '_keep_in_fp32_modules_strict')
            exact = [part for key in keys for part in getattr(module, key, None) or () if dtype in LOW]
            named = module.named_parameters()
            wanted |= {one: dtype for name, one in named if not any(part in name for part in exact)}
    trained = (one for one in model.parameters() if one.requires_grad)
    wanted |= {one: torch.float32 for one in trained if wanted.get(one, one.dtype) in LOW}
    return {one: dtype for one, dtype in wanted.items() if one.is_floating_point() and one.dtype != dtype}


def widen_trained(parameters: Iterable[nn.Parameter]) -> torch.dtype | None:
    """Cast parameters that train to float32, in place: the 8 significant bits of bfloat16 would lose a step of 1e-5.

    In :func:`weights_as_in_files` nothing is cast.

    Args:
        parameters (Iterable[nn.Parameter]): All parameters of a model.

    Returns:
        torch.dtype | None: As from :func:`low_beside_float32`.
    """
    parameters = list(parameters)
    for parameter in () if _keeps_files else parameters:
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
