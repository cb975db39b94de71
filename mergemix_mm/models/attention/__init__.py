"""Recording the interaction intensity of a transformers model's attention layers, at the price of fused attention."""

from .interaction_recorder import InteractionRecorder
from .recording import Recording

__all__ = ['InteractionRecorder', 'Recording']
