"""Plans a training before anything is downloaded: full-size models without weights, and memory on each GPU."""

from .batches import UnknownBatchError, image_input, training_batches
from .plan import GIB, RESERVED, MemoryPlan, PlanError, StepPeaks, TrainingPlan, plan_memory, step_peaks
from .step_memory import StepMemory
from .weightless import HubConfigError, PartSize, build_weightless, part_sizes, read_hub_configs

__all__ = [
    'GIB',
    'RESERVED',
    'HubConfigError',
    'MemoryPlan',
    'PartSize',
    'PlanError',
    'StepMemory',
    'StepPeaks',
    'TrainingPlan',
    'UnknownBatchError',
    'build_weightless',
    'image_input',
    'part_sizes',
    'plan_memory',
    'read_hub_configs',
    'step_peaks',
    'training_batches',
]
