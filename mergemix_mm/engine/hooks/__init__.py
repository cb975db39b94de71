"""Hooks of this package; importing them registers them."""

from .aia_hook import AIAHook
from .mix_visualization_hook import MixVisualizationHook
from .plain_checkpoint_hook import PlainCheckpointHook
from .save_pretrained_hook import SavePretrainedHook
from .step_seed_hook import StepSeedHook
from .weight_mix_hook import WeightMixHook

__all__ = [
    'AIAHook',
    'MixVisualizationHook',
    'PlainCheckpointHook',
    'SavePretrainedHook',
    'StepSeedHook',
    'WeightMixHook',
]
