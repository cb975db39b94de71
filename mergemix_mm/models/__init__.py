"""Models and their parts, registered with MMEngine and MMPretrain."""

from .backbones import ToMeVisionTransformer
from .batch_augments import MergeMix, MixResult, SalientBlur, SwapImages, mix_batch
from .classifiers import MixupClassifier
from .heads import AnswerScores, SFTHead, SimPOHead
from .losses import AIALoss, SimPOLoss
from .tuners import CanvasMix, VLMTuner, mix_canvases
from .vlms import *  # noqa: F403

__all__ = [
    'AIALoss',
    'AnswerScores',
    'CanvasMix',
    'MergeMix',
    'MixResult',
    'MixupClassifier',
    'SFTHead',
    'SalientBlur',
    'SimPOHead',
    'SimPOLoss',
    'SwapImages',
    'ToMeVisionTransformer',
    'VLMTuner',
    'mix_batch',
    'mix_canvases',
]
