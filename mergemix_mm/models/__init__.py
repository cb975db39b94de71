"""Models and their parts, registered with MMEngine and MMPretrain."""

from .backbones import MultiBackbone, TokenMap, ToMeVisionTransformer
from .batch_augments import (
    MergeMix,
    MixPro,
    MixResult,
    OACutMix,
    SalientBlur,
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
    'CanvasMix',
    'EmbeddingMixNeck',
    'Emu3Model',
    'HFVisionLanguageModel',
    'JanusModel',
    'MergeMix',
    'MixPro',
    'MixResult',
    'MixupClassifier',
    'MultiBackbone',
    'OACutMix',
    'SFTHead',
    'SalientBlur',
    'SimPOHead',
    'SimPOLoss',
    'SimpleFeaturePyramid',
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
