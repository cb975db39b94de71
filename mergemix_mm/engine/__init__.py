"""What plugs into MMEngine's Runner: hooks, and the launch code that the tools share."""

from .hooks import MixVisualizationHook, SavePretrainedHook, StepSeedHook

__all__ = ['MixVisualizationHook', 'SavePretrainedHook', 'StepSeedHook']
