"""The model inside of what distributed training and ``torch.compile`` put around it."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.model import is_model_wrapper
from torch import nn


def unwrapped(module: nn.Module) -> nn.Module:
    """Take all wrappers off a module.

    Args:
        module (nn.Module): A module, or a wrapper around one: of MMEngine's registry (DDP, ...), of
            ``torch.compile``, or several of them around each other.

    Returns:
        nn.Module: The innermost module; ``module`` itself if nothing is around it.
    """
    while (name := _inner_name(module)) is not None:
        module = getattr(module, name)
    return module


@contextmanager
def without_wrappers(model: nn.Module) -> Iterator[None]:
    """Take the wrappers off all modules inside of a model until the block ends.

    Libraries that save a model read its modules by name, and a wrapper adds a part to each name below it.

    Args:
        model (nn.Module): The model; changed in place, and as before after the block. A wrapper around the model
            itself stays.
    """
    wrapped = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and _inner_name(child) is not None
    ]
    for parent, name, child in wrapped:
        parent._modules[name] = unwrapped(child)
    try:
        yield
    finally:
        for parent, name, child in wrapped:
            parent._modules[name] = child


def _inner_name(module: nn.Module) -> str | None:
    """The attribute in which a wrapper has its module; None for any other module."""
    children = getattr(module, '_modules', {})
    if '_orig_mod' in children:
        return '_orig_mod'
    # FSDP2 wraps nothing: its modules are of a class that is made from theirs, and have no `module`.
    return 'module' if is_model_wrapper(module) and 'module' in children else None
