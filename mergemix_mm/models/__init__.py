"""Models and their parts, registered with MMEngine and MMPretrain."""

from .backbones import ToMeVisionTransformer
from .batch_augments import MergeMix, MixResult, SalientBlur, SwapImages, mix_batch
from .classifiers import MixupClassifier
from .heads import AnswerScores, SFTHead, SimPOHead
from .losses import AIALoss, SimPOLoss
from .tuners import CanvasMix, UnifiedTuner, VLMTuner, mix_canvases
from .vlms import Emu3Model, HFVisionLanguageModel, JanusModel, VisionLanguageModel, VLMDataPreprocessor

__all__ = [
    'AIALoss',
    'AnswerScores',
    'CanvasMix',
    'Emu3Model',
    'HFVisionLanguageModel',
    'JanusModel',
    'MergeMix',
    'MixResult',
    'MixupClassifier',
    'SFTHead',
    'SalientBlur',
    'SimPOHead',
    'SimPOLoss',
    'SwapImages',
    'ToMeVisionTransformer',
    'UnifiedTuner',
    'VLMDataPreprocessor',
    'VLMTuner',
    'VisionLanguageModel',
    'mix_batch',
    'mix_canvases',
]
