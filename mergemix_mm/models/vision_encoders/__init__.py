"""One adapter per ViT family, and the merged forward over its parts."""

from ...families.vision_encoder import EncoderLayer, UnsupportedEncoderError, VisionEncoder
from .build import ADAPTERS, build_vision_encoder
from .forward import PatchScores, run_layers, score_patches
from .scoring_mode import scoring_mode
from .sharding import gathered

__all__ = [
    'ADAPTERS',
    'EncoderLayer',
    'PatchScores',
    'UnsupportedEncoderError',
    'VisionEncoder',
    'build_vision_encoder',
    'gathered',
    'run_layers',
    'score_patches',
    'scoring_mode',
]
