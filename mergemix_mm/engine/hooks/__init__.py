"""Hooks of this package; importing them registers them."""

from .aia_hook import AIAHook
from .atomic_checkpoint_hook import AtomicCheckpointHook
from .mix_visualization_hook import MixVisualizationHook
from .non_finite_loss_hook import NonFiniteLossHook
from .plain_checkpoint_hook import PlainCheckpointHook
from .save_pretrained_hook import SavePretrainedHook
from .step_seed_hook import StepSeedHook
from .weight_mix_hook import WeightMixHook

__all__ = [
    'AIAHook',
    'AtomicCheckpointHook',
    'MixVisualizationHook',
    'NonFiniteLossHook',
    'PlainCheckpointHook',
    'SavePretrainedHook',
    'StepSeedHook',
    'WeightMixHook',
]
