"""Backbones."""

from .multi_backbone import MultiBackbone
from .token_map import TokenMap
from .tome_vision_transformer import ToMeVisionTransformer

__all__ = ['MultiBackbone', 'ToMeVisionTransformer', 'TokenMap']
