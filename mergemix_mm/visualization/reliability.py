"""The reliability diagram of a classifier (https://arxiv.org/abs/1706.04599, figure 1)."""

import numpy as np

from .canvas import figure_to_image, style_axes

ACCURACY_COLOUR = '#3b6fb6'
OVER_COLOUR = '#f0b592'
UNDER_COLOUR = '#86cdb4'
MUTED = '#6b7280'


def draw_reliability_diagram(
    count: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray, title: str | None = None, dpi: int = 110
) -> np.ndarray:
    """Draw accuracy over confidence bin by bin with the gap between them, and below it the share of predictions.

    Args:
        count (np.ndarray): Predictions per bin, [M] integers with a sum above 0; bins have equal width over [0, 1].
        confidence (np.ndarray): Mean confidence per bin, [M] in [0, 1].
        accuracy (np.ndarray): Share of correct predictions per bin, [M] in [0, 1].
        title (str, optional): A headline. Defaults to None.
        dpi (int): Pixels per inch; the figure is 4.4 x 5.2 inches. Defaults to 110.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.
    """
    from matplotlib.figure import Figure

    count, confidence, accuracy = (np.asarray(values) for values in (count, confidence, accuracy))
    share = count / count.sum()
    gap = confidence - accuracy
    # Expected calibration error: the mean gap over all predictions.
    ece = float((share * np.abs(gap)).sum())
    left = np.arange(len(count)) / len(count)
    width = 1 / len(count)
    filled = count > 0  # An empty bin has no accuracy to draw.

    figure = Figure(figsize=(4.4, 5.2), dpi=dpi, layout='constrained')
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    bars = dict(width=width, align='edge', linewidth=0.6, edgecolor='white')
    upper.bar(left[filled], accuracy[filled], color=ACCURACY_COLOUR, label='accuracy', **bars)
    for name, colour, chosen in (
        ('overconfident by', OVER_COLOUR, filled & (gap > 0)),
        ('underconfident by', UNDER_COLOUR, filled & (gap < 0)),
    ):
        if chosen.any():
            upper.bar(left[chosen], gap[chosen], bottom=accuracy[chosen], color=colour, label=name, **bars)
    upper.plot([0, 1], [0, 1], color='black', linewidth=1, linestyle=(0, (4, 3)), label='perfect')
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy')
    upper.legend(loc='upper left', frameon=False, fontsize=8)
    mean_accuracy, mean_confidence = float((share * accuracy).sum()), float((share * confidence).sum())
    upper.text(
        0.97,
        0.04,
        f'ECE {100 * ece:.1f}%\naccuracy {100 * mean_accuracy:.1f}%\nconfidence {100 * mean_confidence:.1f}%',
        transform=upper.transAxes,
        ha='right',
        va='bottom',
        fontsize=9,
        bbox=dict(boxstyle='round,pad=0.4', facecolor='white', edgecolor='none', alpha=0.85),
    )

    lower.bar(left, 100 * share, color=MUTED, **bars)
    marks = (
        (mean_accuracy, ACCURACY_COLOUR, 'mean accuracy', '-'),
        (mean_confidence, 'black', 'mean confidence', (0, (2, 1.5))),
    )
    for value, colour, name, style in marks:
        lower.axvline(value, color=colour, linewidth=1.4, linestyle=style, label=name)
    lower.set(xlabel='confidence', ylabel='predictions [%]')
    lower.legend(loc='upper left', frameon=False, fontsize=8)
    for axes in (upper, lower):
        style_axes(axes)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure_to_image(figure)
