"""Batch augments: MergeMix, and one way to call it and MMPretrain's own."""

from .mergemix import MergeMix
from .mix_batch import mix_batch
from .mix_result import MixResult

__all__ = ['MergeMix', 'MixResult', 'mix_batch']
