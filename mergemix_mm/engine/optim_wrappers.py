"""Optimizer wrappers and their constructors: clipping under FSDP, and layer-wise decay of the learning rate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

_PREFIX = 'backbone.'
_TOKENS = ('.cls_token', '.dist_token', '.pos_embed')
_NO_DECAY = dict(norm_decay_mult=0.0, flat_decay_mult=0.0, custom_keys={name: dict(decay_mult=0.0) for name in _TOKENS})


@OPTIM_WRAPPERS.register_module()
class FSDPOptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` for a model in ``MMFullyShardedDataParallel``.

    MMEngine's own wrapper clips by the norm of the gradients that a process holds. Of a sharded model this is only a
    part of all gradients, and each process would scale its part by another factor.

    Args:
        **kwargs: Arguments of ``OptimWrapper``; ``clip_grad=dict(max_norm=...)`` clips by the norm of all gradients.

    Raises:
        TypeError: When clipping, if the model is not sharded by FSDP.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        # Clipping needs the wrapped model, and `_clip_grad` gets no arguments.
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
