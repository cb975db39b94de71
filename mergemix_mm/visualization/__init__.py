"""Figures, one function each, usable from hooks, tools and notebooks alike."""

from .canvas import figure_to_image, save_image
from .interaction_curves import draw_interaction_curves
from .labelled_text import format_labels
from .labels import labels_of
from .mixed_samples import draw_mixed_samples
from .pixel_scale import pixel_scale
from .reliability import draw_reliability_diagram

__all__ = [
    'draw_interaction_curves',
    'draw_mixed_samples',
    'draw_reliability_diagram',
    'figure_to_image',
    'format_labels',
    'labels_of',
    'pixel_scale',
    'save_image',
]
