"""Unified models, which read and draw images: Janus and Emu3."""

from .base import UnifiedModel
from .emu3 import Emu3Model
from .janus import JanusModel

__all__ = ['Emu3Model', 'JanusModel', 'UnifiedModel']
