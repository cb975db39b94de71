"""Optimizer wrappers and their constructors: updates of a sharded model, and layer-wise decay of the learning rate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

_PREFIX = 'backbone.'
_TOKENS = ('.cls_token', '.dist_token', '.pos_embed')
_NO_DECAY = dict(norm_decay_mult=0.0, flat_decay_mult=0.0, custom_keys={name: dict(decay_mult=0.0) for name in _TOKENS})


@OPTIM_WRAPPERS.register_module()
class FSDPOptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` for a model that :class:`FSDP2Strategy` has sharded; the strategy puts it in place of the
    config's ``OptimWrapper`` or ``AmpOptimWrapper``.

    - With ``accumulative_counts``, gradients are reduced only in the last micro-batch of an update. MMEngine's wrapper
      asks for ``no_sync`` of the model, which FSDP2 does not have.
    - Clipping is by the norm of all gradients, not of those that a process holds.
    - Processes may differ in which weights outside of the units got a gradient: one has a batch of text only. The
      gradient is 0 where another process has one, and stays None where none has, as ``find_unused_parameters`` of DDP
      does it. Without it, the processes would reduce tensors of different sizes.

    Args:
        **kwargs: Arguments of ``OptimWrapper``.

    Raises:
        TypeError: In a training step, if the model is not sharded.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        if not isinstance(model, FSDPModule):
            raise TypeError(
                f'FSDPOptimWrapper: the model {type(model).__name__} is not sharded. Use strategy=dict(type='
                "'FSDP2Strategy'), or optim_wrapper.type='OptimWrapper'"
            )
        # Read in the backward, which comes after this context.
        model.set_requires_gradient_sync(self.should_sync())
        self._model = model
        with super().optim_context(model):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        if get_world_size() > 1:
            # At the first gradient of the backward: this is queued before the reduction of the root.
            loss.register_hook(lambda grad: torch.autograd.Variable._execution_engine.queue_callback(self._fill_up))
        super().backward(loss, **kwargs)

    @torch.no_grad()
    def _fill_up(self) -> None:
        """Give weights of the root a gradient of 0 if only other processes have one. A collective."""
        # Those of units are DTensors at this point: they are sharded again, and all processes run all units.
        whole = [one for one in self._model.parameters() if one.requires_grad and not isinstance(one, DTensor)]
        found = torch.tensor([one.grad is not None for one in whole], dtype=torch.uint8)
        all_reduce(found, 'max')
        for parameter, elsewhere in zip(whole, found.tolist(), strict=True):
            if elsewhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _clip_grad(self) -> None:
        parameters = [one for group in self.optimizer.param_groups for one in group['params'] if one.grad is not None]
        norm = self.clip_func(parameters, **self.clip_grad_kwargs) if parameters else None
        if norm is not None:  # Clipping by value has none.
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneLayerDecayConstructor(LearningRateDecayOptimWrapperConstructor):
    """MMPretrain's constructor for models that do not know the depth of their parameters: detectors, segmentors.

    Source: BEiT (https://arxiv.org/abs/2106.08254). A parameter of ``model.backbone`` learns with ``layer_decay_rate **
    n`` times the learning rate. Here n is the number of layers between the parameter and the end of the backbone, as
    the backbone's own ``get_layer_depth`` counts. All other parameters learn at the full rate.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper.
        paramwise_cfg (dict, optional): ``layer_decay_rate`` (defaults to 1.0) and the other keys of MMPretrain's
            ``LearningRateDecayOptimWrapperConstructor``. Unlike there, ``norm_decay_mult`` and ``flat_decay_mult``
            default to 0.0, and ``custom_keys`` to no weight decay of the class token, the distillation token and the
            position embedding. Defaults to None.

    Raises:
        ValueError: If the optimizer has no ``weight_decay``, if ``custom_keys`` has an ``lr_mult``, which would have no
            effect, or if the model has no backbone with a ``get_layer_depth``.

    Examples:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.1),
        ...     constructor='BackboneLayerDecayConstructor',
        ...     paramwise_cfg=dict(layer_decay_rate=0.7),
        ... )
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        if optim_wrapper_cfg['optimizer'].get('weight_decay') is None:
            raise ValueError('optim_wrapper.optimizer: weight_decay is missing; set it, to 0.0 for none')
        super().__init__(optim_wrapper_cfg, {**_NO_DECAY, **(paramwise_cfg or {})})
        custom_keys = self.paramwise_cfg['custom_keys']
        if ignored := [key for key, custom in custom_keys.items() if 'lr_mult' in custom]:
            raise ValueError(
                f'optim_wrapper.paramwise_cfg.custom_keys: the lr_mult of {", ".join(ignored)} would have no effect '
                'beside layer_decay_rate. Leave it out; paramwise_cfg=dict(_delete_=True, ...) drops those of a base'
            )

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: Callable[[str], tuple[int, int]] | None = None,
        **kwargs,
    ) -> None:
        """Add the parameters of a module to ``params``, one group each; see the parent class."""
        super().add_params(params, module, prefix, get_layer_depth or _depth_in_backbone(module), **kwargs)


def _depth_in_backbone(model: nn.Module) -> Callable[[str], tuple[int, int]]:
    """A function from the name of a parameter to its depth and the number of depths."""
    backbone = getattr(model, 'backbone', None)
    if backbone is None or not hasattr(backbone, 'get_layer_depth'):
        found = 'no backbone' if backbone is None else f'a {type(backbone).__name__}, which has no get_layer_depth'
        raise ValueError(
            f'BackboneLayerDecayConstructor: {type(model).__name__} has {found}. Use a backbone of MMPretrain that '
            'counts its layers (VisionTransformer, ConvNeXt, SwinTransformer, ...), or leave out '
            'optim_wrapper.constructor'
        )
    num_depths = backbone.get_layer_depth('', prefix=_PREFIX)[1]

    def depth(name: str) -> tuple[int, int]:
        # Parameters outside of the backbone have the last depth, and so the full rate.
        return (
            backbone.get_layer_depth(name, prefix=_PREFIX) if name.startswith(_PREFIX) else (num_depths - 1, num_depths)
        )

    return depth
