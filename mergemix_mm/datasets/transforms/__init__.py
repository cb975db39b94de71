"""Transforms of records, registered in MMEngine's root TRANSFORMS."""

from .encode_conversation import EncodeConversation
from .encode_generation import EncodeGeneration

__all__ = ['EncodeConversation', 'EncodeGeneration']
