"""What plugs into MMEngine's Runner: hooks, a loop, optimizer wrappers, schedules, and the launch code of the tools."""

from .benchmark_loop import BenchmarkLoop
from .hooks import MixVisualizationHook, SavePretrainedHook, StepSeedHook
from .optim_wrappers import BackboneLayerDecayConstructor, FSDPOptimWrapper
from .schedules import ShortLinearLR, fit_schedule
from .strategies import FSDP2Strategy

__all__ = [
    'BackboneLayerDecayConstructor',
    'BenchmarkLoop',
    'FSDP2Strategy',
    'FSDPOptimWrapper',
    'MixVisualizationHook',
    'SavePretrainedHook',
    'ShortLinearLR',
    'StepSeedHook',
    'fit_schedule',
]
