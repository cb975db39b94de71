"""Batch augments: what a mixer is, MergeMix and its relatives, and one call for MMPretrain's augments as well."""

from .attentivemix import AttentiveMix
from .base import MixedPass, Mixer, MixResult, TrainingBatch
from .boxes import OACutMix, SaliencyMix
from .drawn_masks import DrawnMaskMixer, FMix, GridMix, SmoothMix
from .guided_mix import GuidedMix
from .losers import SalientBlur, SwapImages
from .mask_mixer import MaskMixer
from .mergemix import MergeMix
from .mix_batch import AugmentMixer, as_mixer, mix_batch
from .puzzle_mix import PuzzleMix
from .relabel import MixPro, TransMix
from .smmix import SMMix
from .tdattenmix import TdAttenMix
from .token_mix import TokenMix

__all__ = [
    'AttentiveMix',
    'AugmentMixer',
    'DrawnMaskMixer',
    'FMix',
    'GridMix',
    'GuidedMix',
    'MaskMixer',
    'MergeMix',
    'MixPro',
    'MixResult',
    'MixedPass',
    'Mixer',
    'OACutMix',
    'PuzzleMix',
    'SMMix',
    'SaliencyMix',
    'SalientBlur',
    'SmoothMix',
    'SwapImages',
    'TdAttenMix',
    'TokenMix',
    'TrainingBatch',
    'TransMix',
    'as_mixer',
    'mix_batch',
]
