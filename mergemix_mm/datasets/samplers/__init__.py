"""Samplers, registered in MMEngine's root DATA_SAMPLERS."""

from .modality_sampler import ModalitySampler

__all__ = ['ModalitySampler']
