"""Processors of images and text that transformers does not have."""

from .llava_padding import llava_padding_processor
from .sphinx import SphinxProcessor

__all__ = ['SphinxProcessor', 'llava_padding_processor']
