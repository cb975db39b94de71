"""Hooks of this package; importing them registers them."""

from .mix_visualization_hook import MixVisualizationHook
from .step_seed_hook import StepSeedHook

__all__ = ['MixVisualizationHook', 'StepSeedHook']
