"""Rewards of preference tuning over the steps of a training (SimPO, https://arxiv.org/abs/2405.14734)."""

from collections.abc import Mapping, Sequence

import numpy as np

from .canvas import figure_to_image

CHOSEN_COLOUR = '#2563a8'
REJECTED_COLOUR = '#d9702b'
MUTED = '#6b7280'
NEEDED = ('step', 'reward_chosen', 'reward_rejected', 'reward_margin')


def draw_reward_curves(scalars: Mapping[str, Sequence[float]], title: str | None = None, dpi: int = 110) -> np.ndarray:
    """Draw the rewards of chosen and rejected answers, and the margin between them beside the one that is asked for.

    Args:
        scalars (Mapping[str, Sequence[float]]): What `SimPOHead` logs, one value per logged step each: ``step``,
            ``reward_chosen``, ``reward_rejected``, ``reward_margin``, and with a mixer ``ratio_mean``, from which the
            margin asked for follows: 1 - ratio.
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
        axes.spines[['top', 'right']].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.set_axisbelow(True)
        axes.grid(axis='y', linewidth=0.4, color='#d1d5db')
    if title:
        figure.suptitle(title, fontsize=11)
    return figure_to_image(figure)
