"""What plugs into MMEngine's Runner: hooks, an optimizer wrapper, and the launch code that the tools share."""

from .fsdp_optim_wrapper import FSDPOptimWrapper
from .hooks import MixVisualizationHook, SavePretrainedHook, StepSeedHook

__all__ = ['FSDPOptimWrapper', 'MixVisualizationHook', 'SavePretrainedHook', 'StepSeedHook']
