"""Models and their parts, registered with MMEngine and MMPretrain."""

from .backbones import MultiBackbone, TokenMap, ToMeVisionTransformer
from .batch_augments import (
    AttentiveMix,
    FMix,
    GridMix,
    GuidedMix,
    MergeMix,
    MixPro,
    MixResult,
    OACutMix,
    PuzzleMix,
    SaliencyMix,
    SalientBlur,
    SmoothMix,
    SwapImages,
    TdAttenMix,
    TransMix,
    mix_batch,
)
from .classifiers import MixupClassifier
from .heads import AnswerScores, SFTHead, SimPOHead
from .losses import AIALoss, SimPOLoss
from .necks import EmbeddingMixNeck, SimpleFeaturePyramid
from .tuners import CanvasMix, UnifiedTuner, VLMTuner, mix_canvases
from .vlms import Emu3Model, HFVisionLanguageModel, JanusModel, SphinxModel, VisionLanguageModel, VLMDataPreprocessor

__all__ = [
    'AIALoss',
    'AnswerScores',
    'AttentiveMix',
    'CanvasMix',
    'EmbeddingMixNeck',
    'Emu3Model',
    'FMix',
    'GridMix',
    'GuidedMix',
    'HFVisionLanguageModel',
    'JanusModel',
    'MergeMix',
    'MixPro',
    'MixResult',
    'MixupClassifier',
    'MultiBackbone',
    'OACutMix',
    'PuzzleMix',
    'SFTHead',
    'SaliencyMix',
    'SalientBlur',
    'SimPOHead',
    'SimPOLoss',
    'SimpleFeaturePyramid',
    'SmoothMix',
    'SphinxModel',
    'SwapImages',
    'TdAttenMix',
    'ToMeVisionTransformer',
    'TokenMap',
    'TransMix',
    'UnifiedTuner',
    'VLMDataPreprocessor',
    'VLMTuner',
    'VisionLanguageModel',
    'mix_batch',
    'mix_canvases',
]
