"""Curves: interaction intensity over the layers, rewards over the steps, scores over the weight of a mix."""

from collections.abc import Mapping, Sequence

import numpy as np

from .canvas import figure_to_image, legend_label, style_axes

COLOURS = ('#c2571a', '#3b6fb6', '#2a8f6a', '#8a4fa3', '#6b7280', '#b8860b')
CHOSEN_COLOUR = '#2563a8'
REJECTED_COLOUR = '#d9702b'
MUTED = '#6b7280'
NEEDED = ('step', 'reward_chosen', 'reward_rejected', 'reward_margin')


def draw_interaction_curves(
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    targets: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    title: str | None = None,
    dpi: int = 110,
) -> np.ndarray:
    """Draw interaction intensity over the layers of one or several models, with deviations and targets.

    Source: https://arxiv.org/abs/2511.22663.

    Args:
        curves (Mapping[str, Mapping]): For each name (of a task, of a model) ``mean``, [layers] in [0, 1]; optional
            ``std``, [layers], drawn as a band; optional ``layers``, the layer numbers, which default to all from 0.
        targets (Mapping[str, tuple], optional): For a name of `curves`, the target and the threshold of every layer
            of the model: drawn as a dashed line with a band. Defaults to None.
        title (str, optional): A headline. Defaults to None.
        dpi (int): Pixels per inch; the figure is 6.4 x 3.8 inches. Defaults to 110.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.

    Raises:
        ValueError: If there is no curve, or a target without one.
    """
    targets = {} if targets is None else targets
    if not curves or not set(targets) <= set(curves):
        raise ValueError(f'draw_interaction_curves: there must be curves, and one for each target of {list(targets)}')
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.8), dpi=dpi, layout='constrained')
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        mean = np.asarray(curve['mean'], dtype=float)
        layers = np.asarray(curve.get('layers', range(len(mean))))
        axes.plot(layers, mean, color=colour, label=legend_label(name), linewidth=1.6, marker='.', markersize=5)
        if 'std' in curve:
            _band(axes, layers, mean, np.asarray(curve['std'], dtype=float), colour, alpha=0.2)
        if name in targets:  # Of every layer, where the curve may be of some.
            target, delta = (np.asarray(values, dtype=float)[layers] for values in targets[name])
            axes.step(layers, target, where='mid', color=colour, linewidth=1.1, linestyle=(0, (4, 3)))
            _band(axes, layers, target, delta, colour, alpha=0.08, step='mid')
    if targets:
        # One entry in the legend for all targets, which have the colours of their curves.
        axes.plot([], [], color='black', linewidth=1.1, linestyle=(0, (4, 3)), label='target')
    axes.set(ylim=(0, 1), xlabel='layer', ylabel='interaction intensity')
    axes.xaxis.set_major_locator(MaxNLocator(nbins='auto', steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure_to_image(figure)


def _band(axes, layers: np.ndarray, middle: np.ndarray, width: np.ndarray, colour: str, **style) -> None:
    axes.fill_between(layers, middle - width, middle + width, color=colour, linewidth=0, **style)


def draw_reward_curves(scalars: Mapping[str, Sequence[float]], title: str | None = None, dpi: int = 110) -> np.ndarray:
    """Draw the rewards of chosen and rejected answers, and the margin between them beside the target margin.

    Source: SimPO, https://arxiv.org/abs/2405.14734.

    Args:
        scalars (Mapping[str, Sequence[float]]): The log of `SimPOHead`, one value per logged step for each of ``step``,
            ``reward_chosen``, ``reward_rejected`` and ``reward_margin``. With a mixer also ``ratio_mean``: the target
            margin is 1 - ratio.
        title (str, optional): A headline. Defaults to None.
        dpi (int): Pixels per inch; the figure is 7.6 x 3.4 inches. Defaults to 110.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.

    Raises:
        ValueError: If a key is missing, or the lengths differ.
    """
    missing = [key for key in NEEDED if key not in scalars]
    if missing:
        raise ValueError(
            f'draw_reward_curves: the scalars have no {", ".join(missing)}; a run with head=dict(type="SimPOHead") '
            'logs them'
        )
    values = {key: np.asarray(scalars[key], dtype=float) for key in (*NEEDED, 'ratio_mean') if key in scalars}
    if len({len(value) for value in values.values()}) > 1:
        raise ValueError(f'draw_reward_curves: lengths differ: { {key: len(value) for key, value in values.items()} }')
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.4), dpi=dpi, layout='constrained')
    left, right = figure.subplots(1, 2)
    step = values['step']
    left.plot(step, values['reward_chosen'], color=CHOSEN_COLOUR, linewidth=1.6, label='chosen')
    left.plot(step, values['reward_rejected'], color=REJECTED_COLOUR, linewidth=1.6, label='rejected')
    left.fill_between(
        step, values['reward_rejected'], values['reward_chosen'], color=CHOSEN_COLOUR, alpha=0.12, linewidth=0
    )
    left.set(xlabel='step', ylabel='reward')
    right.plot(step, values['reward_margin'], color=CHOSEN_COLOUR, linewidth=1.6, label='margin reached')
    if 'ratio_mean' in values:
        style = dict(color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)))
        right.plot(step, 1 - values['ratio_mean'], label='margin asked for', **style)
    right.axhline(0, color='black', linewidth=0.6)
    right.set(xlabel='step', ylabel='chosen - rejected')
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        style_axes(axes)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure_to_image(figure)


def draw_beta_sweep(
    betas: Sequence[float],
    scores: Mapping[str, Sequence[float]],
    references: Mapping[str, float] | None = None,
    ylabel: str = 'accuracy [%]',
    title: str | None = None,
    dpi: int = 110,
) -> np.ndarray:
    """Draw scores of mixed weights over beta, a curve for each benchmark, and their mean if there are several.

    Source: SPHINX, https://arxiv.org/abs/2311.07575.

    Args:
        betas (Sequence[float]): Weights of the real model in [0, 1], N of them.
        scores (Mapping[str, Sequence[float]]): By name, N scores each.
        references (Mapping[str, float], optional): By name, scores to compare with, such as that of a model trained on
            all data, drawn as dashed lines. Defaults to None.
        ylabel (str): Name and unit of the scores. Defaults to ``'accuracy [%]'``.
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
    for name, reference in (references or {}).items():
        axes.axhline(reference, color='#6b7280', linewidth=1.1, linestyle=(0, (4, 3)), label=legend_label(name))
    axes.set(xlabel='beta', ylabel=ylabel, xlim=(-0.03, 1.03))
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure_to_image(figure)


def draw_accuracy_curves(
    x: Sequence[float],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    xlabel: str,
    dashed: Mapping[str, str] | None = None,
    ylabel: str = 'top-1 [%]',
    title: str | None = None,
    dpi: int = 110,
) -> np.ndarray:
    """Draw accuracies in panels side by side, with one legend for all of them.

    Args:
        x (Sequence[float]): N values of what was varied.
        panels (Mapping[str, Mapping]): By the title of the panel, the curves by their names, N numbers each. A curve
            has the same colour in all panels.
        xlabel (str): Name and unit of `x`.
        dashed (Mapping[str, str], optional): For the name of a curve that is drawn dashed, the name of the curve whose
            colour it has. Defaults to None.
        ylabel (str): Name and unit of the accuracies. Defaults to ``'top-1 [%]'``.
        title (str, optional): A headline. Defaults to None.
        dpi (int): Pixels per inch; a panel has 3.4 x 3.2 inches. Defaults to 110.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.

    Raises:
        ValueError: If there is no curve, or one with another number of values than `x`.
    """
    lengths = {name: len(values) for curves in panels.values() for name, values in curves.items()}
    if not lengths or set(lengths.values()) != {len(x)}:
        raise ValueError(f'draw_accuracy_curves: needs {len(x)} values in each curve, got {lengths}')
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(panels), 3.2 + 0.1 * len(lengths)), dpi=dpi, layout='constrained')
    row = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    dashed = dashed or {}
    own = [name for name in lengths if name not in dashed]
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(own)}
    for axes, (name, curves) in zip(row, panels.items()):
        for label, values in curves.items():
            axes.plot(
                x,
                values,
                color=colours[dashed.get(label, label)],
                linestyle=(0, (4, 2)) if label in dashed else '-',
                linewidth=1.4,
                marker='o',
                markersize=3.5,
                label=legend_label(label),
            )
        axes.set(title=name, xlabel=xlabel)
        axes.title.set_fontsize(10)
        style_axes(axes)
    row[0].set_ylabel(ylabel)
    handles = {line.get_label(): line for axes in row for line in axes.lines}
    figure.legend(handles.values(), handles, loc='outside lower center', ncols=2, frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure_to_image(figure)
