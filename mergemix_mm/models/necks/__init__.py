"""Necks."""

from .embedding_mix_neck import EmbeddingMixNeck
from .simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ['EmbeddingMixNeck', 'SimpleFeaturePyramid']
