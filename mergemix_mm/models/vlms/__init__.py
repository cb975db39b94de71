"""Vision-language models: the interface the tuners use, and models of transformers behind it."""

from .base import IMAGE, MARKER, PAD, TEXT, Generation, VisionLanguageModel
from .data_preprocessor import VLMDataPreprocessor
from .emu3_model import Emu3Model
from .hf_vision_language_model import HFVisionLanguageModel
from .janus_model import JanusModel
from .mosaic_codes import MosaicCodes
from .sphinx_model import SphinxModel
from .unified import UnifiedModel
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
    'MosaicCodes',
    'SphinxModel',
    'UnifiedModel',
    'VLMDataPreprocessor',
    'VisionLanguageModel',
    'wrap_decoder_layers',
]
