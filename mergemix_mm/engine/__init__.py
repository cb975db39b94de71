"""What plugs into MMEngine's Runner: hooks, a loop, what builds and wraps optimizers, and the tools' launch code."""

from .benchmark_loop import BenchmarkLoop
from .hooks import MixVisualizationHook, SavePretrainedHook, StepSeedHook
from .optim_wrappers import BackboneLayerDecayConstructor, FSDPOptimWrapper
from .schedules import ShortLinearLR, fit_schedule

__all__ = [
    'BackboneLayerDecayConstructor',
    'BenchmarkLoop',
    'FSDPOptimWrapper',
    'MixVisualizationHook',
    'SavePretrainedHook',
    'ShortLinearLR',
    'StepSeedHook',
    'fit_schedule',
]
