"""Batch augments: MergeMix and its relatives, and one way to call them and MMPretrain's own."""

from .base import MixResult
from .losers import SalientBlur, SwapImages
from .mergemix import MergeMix
from .mix_batch import mix_batch

__all__ = ['MergeMix', 'MixResult', 'SalientBlur', 'SwapImages', 'mix_batch']
