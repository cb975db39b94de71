"""Batch augments: what a mixer is, MergeMix and its relatives, and one call for MMPretrain's augments as well."""

from .base import Mixer, MixResult
from .losers import SalientBlur, SwapImages
from .mergemix import MergeMix
from .mix_batch import AugmentMixer, as_mixer, mix_batch

__all__ = ['AugmentMixer', 'MergeMix', 'MixResult', 'Mixer', 'SalientBlur', 'SwapImages', 'as_mixer', 'mix_batch']
