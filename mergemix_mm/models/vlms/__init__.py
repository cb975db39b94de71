"""Vision-language models: the interface that tuners use, and the models that implement it."""

from ...moved import moved_names
from .base import IMAGE, MARKER, PAD, TEXT, Generation, VisionLanguageModel, VLMDataPreprocessor
from .hf.hf_vision_language_model import HFVisionLanguageModel
from .sphinx.model import SphinxModel
from .unified.base import UnifiedModel
from .unified.emu3 import Emu3Model
from .unified.janus import JanusModel
from .wrap_policy import wrap_decoder_layers

__all__ = [
    'IMAGE',
    'MARKER',
    'PAD',
    'TEXT',
    'Emu3Model',
    'Generation',
    'HFVisionLanguageModel',
    'JanusModel',
    'SphinxModel',
    'UnifiedModel',
    'VLMDataPreprocessor',
    'VisionLanguageModel',
    'wrap_decoder_layers',
]

__getattr__ = moved_names(__name__, ['MosaicCodes'], 'toy')
