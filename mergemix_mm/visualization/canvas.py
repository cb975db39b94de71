"""From a matplotlib figure to an image array, and from there to a file, without any global state of pyplot."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..utils.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_to_image(figure: 'Figure') -> np.ndarray:
    """Render a figure off screen.

    Args:
        figure (matplotlib.figure.Figure): The figure, made without pyplot.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_image(image: np.ndarray, path: str | os.PathLike) -> Path:
    """Write an image as PNG, whole or not at all: a reader never meets half a file.

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
