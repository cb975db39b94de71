"""Images in a grid, with captions, predicted boxes and true boxes."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from .canvas import figure_to_image

TRUE_COLOUR = '#35c28f'
PREDICTED_COLOUR = '#ff8a3d'
TEXT_COLOUR = '#1f2937'
CELL, CAPTION_LINE = 1.5, 0.16
LINE_LENGTH, LONGEST_CAPTION = 26, 400  # Characters.


def draw_image_grid(
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    predicted: Sequence[Sequence[Sequence[float]]] | None = None,
    true: Sequence[Sequence[Sequence[float]]] | None = None,
    columns: int = 4,
    dpi: int = 110,
) -> np.ndarray:
    """Draw images row by row, each with a caption below, predicted boxes as solid and true ones as dashed lines.

    Args:
        images (Sequence[np.ndarray]): N images [H, W, 3] uint8, RGB; sizes may differ.
        captions (Sequence[str], optional): N texts, wrapped at 26 characters and cut at 400. Defaults to None.
        predicted (Sequence, optional): For each image its predicted boxes [n, 4], xyxy in pixels; n can be 0.
            Defaults to None.
        true (Sequence, optional): For each image its true boxes, in the same form. Defaults to None.
        columns (int): Images in a row. Defaults to 4.
        dpi (int): Pixels per inch; an image is 1.5 inches wide and high at most. Defaults to 110.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.

    Raises:
        ValueError: If there is no image, or not as many captions or lists of boxes as images.
    """
    per_image = dict(captions=captions, predicted=predicted, true=true)
    counts = {name: len(values) for name, values in per_image.items() if values is not None}
    if not len(images) or any(count != len(images) for count in counts.values()):
        raise ValueError(f'draw_image_grid: {len(images)} images for {counts}; give one entry per image, and an image')
    from matplotlib.figure import Figure

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    texts = [textwrap.fill(_cut(text), LINE_LENGTH) for text in captions or [''] * len(images)]
    # All rows are as high as the longest caption needs, so that images are aligned.
    caption = CAPTION_LINE * max(text.count('\n') + 1 for text in texts) + 0.1 if captions else 0.08
    legend = 0.28 if counts.keys() & {'predicted', 'true'} else 0.08
    size = (columns * (CELL + 0.12) + 0.12, rows * (CELL + caption) + legend)
    figure = Figure(figsize=size, dpi=dpi, facecolor='white')
    for number, (image, text) in enumerate(zip(images, texts)):
        # In inches, from the bottom of the page as matplotlib counts.
        row, column = divmod(number, columns)
        top = size[1] - legend - row * (CELL + caption)
        place = (0.12 + column * (CELL + 0.12), top - CELL, CELL, CELL)
        left, bottom, width, height = (edge / size[i % 2] for i, edge in enumerate(place))
        axes = figure.add_axes((left, bottom, width, height))
        axes.set_axis_off()
        axes.imshow(image)
        _draw_boxes(axes, true[number] if true is not None else (), TRUE_COLOUR, (0, (3, 2)))
        _draw_boxes(axes, predicted[number] if predicted is not None else (), PREDICTED_COLOUR, 'solid')
        figure.text(
            (place[0] + CELL / 2) / size[0], (place[1] - 0.05) / size[1], text, ha='center', va='top', fontsize=7.5,
            color=TEXT_COLOUR,
        )  # fmt: skip
    _draw_legend(figure, predicted is not None, true is not None)
    return figure_to_image(figure)


def _cut(text: str) -> str:
    """Cut a long caption: the height of all rows follows the longest one."""
    return text if len(text) <= LONGEST_CAPTION else text[: LONGEST_CAPTION - 1] + '…'


def _draw_boxes(axes, boxes: Sequence[Sequence[float]], colour: str, style) -> None:
    from matplotlib.patches import Rectangle

    for x1, y1, x2, y2 in boxes:
        # Pixel i covers i - 0.5 to i + 0.5 on the axes of an image.
        corner, edges = (x1 - 0.5, y1 - 0.5), (x2 - x1, y2 - y1)
        axes.add_patch(Rectangle(corner, *edges, fill=False, edgecolor=colour, linewidth=1.6, linestyle=style))


def _draw_legend(figure, predicted: bool, true: bool) -> None:
    from matplotlib.lines import Line2D

    kinds: list[tuple[bool, str, str, Any]] = [
        (predicted, 'predicted', PREDICTED_COLOUR, 'solid'),
        (true, 'true', TRUE_COLOUR, (0, (3, 2))),
    ]
    lines = [Line2D([], [], color=colour, linestyle=style, label=name) for has, name, colour, style in kinds if has]
    if lines:
        figure.legend(handles=lines, loc='upper left', ncols=2, frameon=False, fontsize=8, borderaxespad=0.2)
