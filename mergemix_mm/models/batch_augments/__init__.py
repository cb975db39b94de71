"""Batch augments: MergeMix, and one way to call it and MMPretrain's own."""

from .mergemix import MergeMix
from .mix_result import MixResult
from .mixing import mix_batch

__all__ = ['MergeMix', 'MixResult', 'mix_batch']
