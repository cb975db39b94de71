"""One adapter per ViT family, and the merged forward over its parts."""

from ...families.vision_encoder import EncoderLayer, UnsupportedEncoderError, VisionEncoder
from ..evaluation_mode import evaluation_mode as scoring_mode
from .build import ADAPTERS, build_vision_encoder
from .forward import (
    SALIENCIES,
    PatchScores,
    Recording,
    gathered,
    join_units,
    recorded,
    run_layers,
    score_patches,
    scored_merge,
    sharded_units,
)

__all__ = [
    'ADAPTERS',
    'SALIENCIES',
    'EncoderLayer',
    'PatchScores',
    'Recording',
    'UnsupportedEncoderError',
    'VisionEncoder',
    'build_vision_encoder',
    'gathered',
    'join_units',
    'recorded',
    'run_layers',
    'score_patches',
    'scored_merge',
    'scoring_mode',
    'sharded_units',
]
