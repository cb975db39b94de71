"""Clipping by the norm of all gradients where FSDP has shared them out among the processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class FSDPOptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` for a model in ``MMFullyShardedDataParallel``.

    MMEngine's own takes the norm of the gradients that a process has. Of a sharded model this is a part of them, and
    each process would scale its part by a factor of its own.

    Args:
        **kwargs: Those of ``OptimWrapper``; ``clip_grad=dict(max_norm=...)`` clips by norm.

    Raises:
        TypeError: When clipping, if the model is not sharded by FSDP.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        self._model = model
        with super().optim_context(model):
            yield

    def _clip_grad(self) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel

        if not isinstance(self._model, FullyShardedDataParallel):
            raise TypeError(
                f'FSDPOptimWrapper: the model {type(self._model).__name__} is not sharded. Use strategy=dict(type='
                "'FSDPStrategy', ...), or optim_wrapper.type='OptimWrapper'"
            )
        norm = self._model.clip_grad_norm_(**self.clip_grad_kwargs)
        self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))
