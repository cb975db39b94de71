"""Scores of methods over seeds: one panel for each model, one line for each method."""

from collections.abc import Mapping, Sequence

import numpy as np

from .canvas import figure_to_image, legend_label, style_axes

BEST_COLOUR = '#c2571a'
OTHER_COLOUR = '#3b6fb6'


def draw_method_scores(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    xlabel: str = 'accuracy [%]',
    lower_is_better: bool = False,
    title: str | None = None,
    dpi: int = 110,
) -> np.ndarray:
    """Draw the score of every seed as a dot, and the mean with its standard deviation as a bar.

    Args:
        scores (Mapping[str, Mapping]): For each panel (a model) the methods with their scores, one for each seed. A
            method may be missing in a panel.
        xlabel (str): Name and unit of the scores. Defaults to ``'accuracy [%]'``.
        lower_is_better (bool): Whether the lowest mean is highlighted, not the highest. Defaults to False.
        title (str, optional): A headline. Defaults to None.
        dpi (int): Pixels per inch. Defaults to 110.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.

    Raises:
        ValueError: If there is no score, or a method without any.
    """
    if not scores or not all(methods and all(map(len, methods.values())) for methods in scores.values()):
        raise ValueError(f'draw_method_scores: needs panels, methods and at least one score for each, got {scores}')
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(method for panel in scores.values() for method in panel))
    figure = Figure(figsize=(1.6 + 3.2 * len(scores), 1.1 + 0.32 * len(methods)), dpi=dpi, layout='constrained')
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, (name, panel) in zip(panels, scores.items(), strict=True):
        means = {method: float(np.mean(values)) for method, values in panel.items()}
        best = (min if lower_is_better else max)(means.values())
        for method, values in panel.items():
            height, colour = methods.index(method), BEST_COLOUR if means[method] == best else OTHER_COLOUR
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            axes.errorbar(
                means[method], height, xerr=deviation, fmt='D', markersize=5, color=colour, capsize=3, linewidth=1.4
            )
            axes.plot(values, [height] * len(values), 'o', markersize=3, color=colour, alpha=0.4, linewidth=0)
        style_axes(axes)
        axes.set_title(legend_label(name), fontsize=9)
        axes.set_xlabel(xlabel, fontsize=8)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)  # The first method is on top.
    if title:
        figure.suptitle(title, fontsize=11)
    return figure_to_image(figure)
