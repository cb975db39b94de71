"""Samplers, registered in MMEngine's root DATA_SAMPLERS."""

from .modality_sampler import ModalitySampler
from .task_mix_sampler import TaskMixSampler

__all__ = ['ModalitySampler', 'TaskMixSampler']
