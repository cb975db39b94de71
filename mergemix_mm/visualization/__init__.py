"""Figures, one function each, usable from hooks, tools and notebooks alike."""

from .beta_sweep import draw_beta_sweep
from .canvas import figure_to_image, save_image
from .image_grid import draw_image_grid
from .interaction_curves import draw_interaction_curves
from .labelled_text import format_labels
from .labels import labels_of
from .mixed_samples import draw_mixed_samples
from .pixel_scale import pixel_scale
from .reliability import draw_reliability_diagram
from .reward_curves import draw_reward_curves

__all__ = [
    'draw_beta_sweep',
    'draw_image_grid',
    'draw_interaction_curves',
    'draw_mixed_samples',
    'draw_reliability_diagram',
    'draw_reward_curves',
    'figure_to_image',
    'format_labels',
    'labels_of',
    'pixel_scale',
    'save_image',
]
