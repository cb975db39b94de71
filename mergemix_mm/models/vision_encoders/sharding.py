"""Gives a scoring pass the whole parameters of an encoder that FSDP has sharded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed
from torch import nn


@contextmanager
def gathered(model: nn.Module) -> Iterator[nn.Module]:
    """Gather an encoder's parameters, if it is an FSDP unit of its own. A collective: every rank must enter it.

    The scoring pass calls the parts of an encoder, not its forward, so FSDP would not notice that layers of it are
    used. An encoder that is part of a larger unit needs nothing: its parameters are there while that unit runs.

    Args:
        model (nn.Module): The encoder, sharded or not.

    Yields:
        nn.Module: the encoder itself, without FSDP's wrapper.

    Raises:
        RuntimeError: if FSDP shards modules inside the encoder.
    """
    if not torch.distributed.is_available():
        yield model
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    fsdp = FSDPModule | FullyShardedDataParallel
    inside = [name for name, module in model.named_modules() if name and isinstance(module, fsdp)]
    if inside:
        raise RuntimeError(
            f'FSDP shards {len(inside)} modules inside the scoring encoder `{type(model).__name__}` (first: '
            f'{inside[0]!r}). Keep its layers out of the wrap policy, so that the encoder is one unit, or freeze it '
            'and ignore it (ignored_modules), or score with MergeMix(encoder=dict(...))'
        )
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model, recurse=False, writeback=False):
            yield model.module
    else:
        if isinstance(model, FSDPModule):
            model.unshard()  # The encoder's own forward follows, finds this done, and shards again behind itself.
        yield model
