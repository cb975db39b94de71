"""Figures, one function each, for hooks, tools and notebooks."""

from .canvas import figure_to_image, save_image
from .curves import draw_accuracy_curves, draw_beta_sweep, draw_interaction_curves, draw_reward_curves
from .image_grid import draw_image_grid
from .labelled_text import format_labels
from .mixed_samples import draw_mixed_samples, labels_of, pixel_scale
from .reliability import draw_reliability_diagram
from .scores import draw_method_scores

__all__ = [
    'draw_accuracy_curves',
    'draw_beta_sweep',
    'draw_image_grid',
    'draw_interaction_curves',
    'draw_method_scores',
    'draw_mixed_samples',
    'draw_reliability_diagram',
    'draw_reward_curves',
    'figure_to_image',
    'format_labels',
    'labels_of',
    'pixel_scale',
    'save_image',
]
