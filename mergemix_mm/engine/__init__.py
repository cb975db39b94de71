"""What plugs into MMEngine's Runner: hooks, a loop, what builds and wraps optimizers, and the tools' launch code."""

from .backbone_layer_decay_constructor import BackboneLayerDecayConstructor
from .benchmark_loop import BenchmarkLoop
from .fsdp_optim_wrapper import FSDPOptimWrapper
from .hooks import MixVisualizationHook, SavePretrainedHook, StepSeedHook
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
