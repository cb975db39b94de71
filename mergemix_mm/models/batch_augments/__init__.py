"""Batch augments: MergeMix and its relatives, and one way to call them and MMPretrain's own."""

from .mergemix import MergeMix
from .mix_batch import mix_batch
from .mix_result import MixResult
from .salient_blur import SalientBlur
from .swap_images import SwapImages

__all__ = ['MergeMix', 'MixResult', 'SalientBlur', 'SwapImages', 'mix_batch']
