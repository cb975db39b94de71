"""Recording the interaction intensity of a transformers model's attention layers, at the price of fused attention."""

from .alignment import InteractionAlignment, LayerIntensity
from .interaction_recorder import InteractionRecorder
from .recording import Recording
from .spans import interaction_spans

__all__ = ['InteractionAlignment', 'InteractionRecorder', 'LayerIntensity', 'Recording', 'interaction_spans']
