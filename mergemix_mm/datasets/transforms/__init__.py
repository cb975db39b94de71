"""Transforms of records, registered in MMEngine's root TRANSFORMS."""

from .encode_conversation import EncodeConversation

__all__ = ['EncodeConversation']
