"""Mixtures of datasets, and the samplers that draw batches of one task or modality from them."""

from .samplers import ModalitySampler, TaskMixSampler
from .task_mix import TaskMixDataset
from .unified import UnifiedDataset

__all__ = ['ModalitySampler', 'TaskMixDataset', 'TaskMixSampler', 'UnifiedDataset']
