"""From a matplotlib figure to an image array, and to a file, without the global state of pyplot."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..utils.files import replaced_file
from ..utils.text import printable, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_LINE = 120  # Characters. Matplotlib fails on a text of 65,536 pixels.


def figure_to_image(figure: 'Figure') -> np.ndarray:
    """Render a figure off screen.

    Texts are drawn as they are: a dollar sign starts no formula, and control characters are written out.

    Args:
        figure (matplotlib.figure.Figure): The figure, made without pyplot.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _make_texts_plain(figure)
    # Not pyplot, which keeps every figure in a global list and may look for a display.
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # A copy: the buffer is part of the canvas, which does not outlive this function.
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def legend_label(name: object) -> str:
    """A name from data as the label of a line: matplotlib omits labels that are empty or begin with ``_``."""
    text = str(name)
    return f' {text}' if not text or text.startswith('_') else text


def style_axes(axes: 'Axes') -> None:
    """Give axes the look of all figures here: no box, small numbers, light horizontal lines below the data."""
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(axis='y', linewidth=0.4, color='#d1d5db')


def _make_texts_plain(figure: 'Figure') -> None:
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter, ScalarFormatter

    # Numbers along an axis come from matplotlib, not from data, and a power of ten is a formula.
    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    numeric = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter | ScalarFormatter)]
    ticks = [tick for axis in numeric for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())]
    labels = [*(axis.get_offset_text() for axis in numeric), *(text for t in ticks for text in (t.label1, t.label2))]
    own = {id(text) for text in labels}
    for text in labels:
        text.set_parse_math(True)  # The tools switch formulas off for what MMEngine draws.
    for text in figure.findobj(Text):
        if id(text) not in own:
            text.set_parse_math(False)
            lines = printable(text.get_text()).replace('\t', ' ').split('\n')
            text.set_text('\n'.join(shown(line, LONGEST_LINE) if len(line) > LONGEST_LINE else line for line in lines))


def save_image(image: np.ndarray, path: str | os.PathLike) -> Path:
    """Write an image as PNG, whole or not at all: a reader never finds half a file.

    Args:
        image (np.ndarray): [H, W, 3] uint8, RGB.
        path (str | os.PathLike): The file; missing folders are made.

    Returns:
        Path: The file written.
    """
    from PIL import Image

    path = Path(path).expanduser()
    with replaced_file(path) as temporary:
        Image.fromarray(image).save(temporary, format='PNG')
    return path
