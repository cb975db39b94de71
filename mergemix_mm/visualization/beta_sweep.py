"""Scores of mixed weights over beta (SPHINX, https://arxiv.org/abs/2311.07575)."""

from collections.abc import Mapping, Sequence

import numpy as np

from .canvas import figure_to_image, legend_label
from .interaction_curves import COLOURS


def draw_beta_sweep(
    betas: Sequence[float],
    scores: Mapping[str, Sequence[float]],
    references: Mapping[str, float] | None = None,
    ylabel: str = 'accuracy [%]',
    title: str | None = None,
    dpi: int = 110,
) -> np.ndarray:
    """Draw a curve over beta for each thing that was scored, and their mean where there are several.

    Args:
        betas (Sequence[float]): Weights of the real model in [0, 1], N of them.
        scores (Mapping[str, Sequence[float]]): By name, N scores each.
        references (Mapping[str, float], optional): By name, a score to compare the mean with, such as that of a model
            trained on everything: a dashed line. Defaults to None.
        ylabel (str): What the scores are. Defaults to ``'accuracy [%]'``.
        title (str, optional): A headline. Defaults to None.
        dpi (int): Pixels per inch; the figure is 6.4 x 3.8 inches. Defaults to 110.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.

    Raises:
        ValueError: If there is no score, or not one for each beta.
    """
    values = {name: np.asarray(score, dtype=float) for name, score in scores.items()}
    if not values or any(len(score) != len(betas) for score in values.values()):
        raise ValueError(
            f'draw_beta_sweep: needs a score for each of the {len(betas)} betas, got '
            f'{ {name: len(score) for name, score in values.items()} }'
        )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=dpi, layout='constrained')
    axes = figure.subplots()
    for number, (name, score) in enumerate(values.items()):
        axes.plot(
            betas,
            score,
            color=COLOURS[number % len(COLOURS)],
            linewidth=1.4,
            marker='o',
            markersize=4,
            label=legend_label(name),
        )
    if len(values) > 1:
        mean = np.mean(list(values.values()), axis=0)
        axes.plot(betas, mean, color='black', linewidth=2, marker='o', markersize=4, label='mean')
    for name, score in (references or {}).items():
        axes.axhline(score, color='#6b7280', linewidth=1.1, linestyle=(0, (4, 3)), label=legend_label(name))
    axes.set(xlabel='beta', ylabel=ylabel, xlim=(-0.03, 1.03))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(axis='y', linewidth=0.4, color='#d1d5db')
    if title:
        figure.suptitle(title, fontsize=11)
    return figure_to_image(figure)
