"""Backbones."""

from .tome_vision_transformer import ToMeVisionTransformer

__all__ = ['ToMeVisionTransformer']
