"""Records the interaction intensity of a transformers model's attention layers, at the cost of fused attention."""

from .alignment import InteractionAlignment, LayerIntensity, interaction_spans
from .interaction_attention import Recording
from .interaction_recorder import InteractionRecorder

__all__ = ['InteractionAlignment', 'InteractionRecorder', 'LayerIntensity', 'Recording', 'interaction_spans']
