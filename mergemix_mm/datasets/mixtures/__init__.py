"""Mixtures of datasets, and the samplers that draw from them in batches of one task or modality."""

from .modality_sampler import ModalitySampler
from .task_mix import TaskMixDataset
from .task_mix_sampler import TaskMixSampler
from .unified import UnifiedDataset

__all__ = ['ModalitySampler', 'TaskMixDataset', 'TaskMixSampler', 'UnifiedDataset']
