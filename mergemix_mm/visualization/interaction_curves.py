"""Interaction intensity layer by layer (https://arxiv.org/abs/2511.22663)."""

from collections.abc import Mapping, Sequence

import numpy as np

from .canvas import figure_to_image, legend_label

COLOURS = ('#c2571a', '#3b6fb6', '#2a8f6a', '#8a4fa3', '#6b7280', '#b8860b')


def draw_interaction_curves(
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    targets: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    title: str | None = None,
    dpi: int = 110,
) -> np.ndarray:
    """Draw curves over the layers of one or several models, with bands of their deviation, and targets beside them.

    Args:
        curves (Mapping[str, Mapping]): For each name (of a task, of a model) ``mean``, [layers] in [0, 1]; ``std``,
            [layers], if there is a band to draw; ``layers``, which layers they are, if not all from 0.
        targets (Mapping[str, tuple], optional): For a name of `curves`, the target and the threshold of every layer
            of the model: a dashed line, with a band of the threshold around it. Defaults to None.
        title (str, optional): A headline. Defaults to None.
        dpi (int): Pixels per inch; the figure is 6.4 x 3.8 inches. Defaults to 110.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.

    Raises:
        ValueError: if there is no curve, or a target without one.
    """
    targets = {} if targets is None else targets
    if not curves or not set(targets) <= set(curves):
        raise ValueError(f'draw_interaction_curves: there must be curves, and one for each target of {list(targets)}')
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=dpi, layout='constrained')
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        mean = np.asarray(curve['mean'], dtype=float)
        layers = np.asarray(curve.get('layers', range(len(mean))))
        axes.plot(layers, mean, color=colour, label=legend_label(name), linewidth=1.6, marker='.', markersize=5)
        if 'std' in curve:
            _band(axes, layers, mean, np.asarray(curve['std'], dtype=float), colour, alpha=0.2)
        if name in targets:
            target, delta = (np.asarray(values, dtype=float)[layers] for values in targets[name])
            axes.step(layers, target, where='mid', color=colour, linewidth=1.1, linestyle=(0, (4, 3)))
            _band(axes, layers, target, delta, colour, alpha=0.08, step='mid')
    if targets:
        axes.plot([], [], color='black', linewidth=1.1, linestyle=(0, (4, 3)), label='target')
    axes.set(ylim=(0, 1), xlabel='layer', ylabel='interaction intensity')
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(axis='y', linewidth=0.4, color='#d1d5db')
    if title:
        figure.suptitle(title, fontsize=11)
    return figure_to_image(figure)


def _band(axes, layers: np.ndarray, middle: np.ndarray, width: np.ndarray, colour: str, **style) -> None:
    axes.fill_between(layers, middle - width, middle + width, color=colour, linewidth=0, **style)
