"""Hooks of this package; importing them registers them."""

from .mix_visualization_hook import MixVisualizationHook
from .save_pretrained_hook import SavePretrainedHook
from .step_seed_hook import StepSeedHook

__all__ = ['MixVisualizationHook', 'SavePretrainedHook', 'StepSeedHook']
