"""Batch augments: what a mixer is, MergeMix and its relatives, and one call for MMPretrain's augments as well."""

from .base import MixedPass, Mixer, MixResult, TrainingBatch
from .boxes import DrawnMaskMixer, OACutMix
from .losers import SalientBlur, SwapImages
from .mask_mixer import MaskMixer
from .mergemix import MergeMix
from .mix_batch import AugmentMixer, as_mixer, mix_batch
from .relabel import MixPro, TransMix
from .smmix import SMMix
from .tdattenmix import TdAttenMix
from .token_mix import TokenMix

__all__ = [
    'AugmentMixer',
    'DrawnMaskMixer',
    'MaskMixer',
    'MergeMix',
    'MixPro',
    'MixResult',
    'MixedPass',
    'Mixer',
    'OACutMix',
    'SMMix',
    'SalientBlur',
    'SwapImages',
    'TdAttenMix',
    'TokenMix',
    'TrainingBatch',
    'TransMix',
    'as_mixer',
    'mix_batch',
]
