"""Vision-language models: the interface the tuners use, and models of transformers behind it."""

from .base import IMAGE, MARKER, PAD, TEXT, Generation, VisionLanguageModel
from .data_preprocessor import VLMDataPreprocessor
from .hf_vision_language_model import HFVisionLanguageModel
from .wrap_policy import wrap_decoder_layers

__all__ = [
    'IMAGE',
    'MARKER',
    'PAD',
    'TEXT',
    'Generation',
    'HFVisionLanguageModel',
    'VLMDataPreprocessor',
    'VisionLanguageModel',
    'wrap_decoder_layers',
]
