"""Models and their parts, registered with MMEngine and MMPretrain."""

from .backbones import ToMeVisionTransformer
from .batch_augments import MergeMix, MixResult, mix_batch
from .classifiers import MixupClassifier

__all__ = ['MergeMix', 'MixResult', 'MixupClassifier', 'ToMeVisionTransformer', 'mix_batch']
