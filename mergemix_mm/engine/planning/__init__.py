"""Plans a training before anything is downloaded: full-size models without weights, memory, and many GPUs."""

from .batches import UnknownBatchError, image_input, training_batches
from .plan import GIB, RESERVED, MemoryPlan, PlanError, StepPeaks, TrainingPlan, plan_memory, step_peaks
from .scale import Cluster, ScalePlan, StepWork, plan_scale, step_work
from .step_memory import StepMemory
from .weightless import HubConfigError, PartSize, build_weightless, part_sizes, read_hub_configs

__all__ = [
    'GIB',
    'RESERVED',
    'Cluster',
    'HubConfigError',
    'MemoryPlan',
    'PartSize',
    'PlanError',
    'ScalePlan',
    'StepMemory',
    'StepPeaks',
    'StepWork',
    'TrainingPlan',
    'UnknownBatchError',
    'build_weightless',
    'image_input',
    'part_sizes',
    'plan_memory',
    'plan_scale',
    'read_hub_configs',
    'step_peaks',
    'step_work',
    'training_batches',
]
