"""The figures of the applications: images side by side, with a box or a mask drawn into them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mergemix_mm.visualization import figure_to_image

BOX_COLOUR = '#d9702b'
MASK_COLOUR = (0.15, 0.39, 0.66)
TEXT_COLOUR = '#1f2937'
PANEL_INCHES = 3.0


@dataclass
class Panel:
    """One image of a figure.

    Args:
        caption (str): Written above it.
        image (PIL.Image.Image): The image.
        box (Sequence[float], optional): xyxy in pixels, drawn as a frame. Defaults to None.
        mask (np.ndarray, optional): [H, W] bool. The rest of the image becomes pale. Defaults to None.
    """

    caption: str
    image: Image.Image
    box: Sequence[float] | None = None
    mask: np.ndarray | None = None


def draw_panels(panels: Sequence[Panel], title: str, dpi: int = 150) -> np.ndarray:
    """Draw images of one size side by side.

    Args:
        panels (Sequence[Panel]): At least one.
        title (str): The headline.
        dpi (int): Pixels per inch. The longer side of an image is 3 inches. Defaults to 150.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.
    """
    from matplotlib.figure import Figure

    width, height = panels[0].image.size
    scale = PANEL_INCHES / max(width, height)
    size = (len(panels) * (width * scale + 0.1), height * scale + 0.55)
    figure = Figure(figsize=size, dpi=dpi, layout='constrained')
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        _draw(axes, panel, dpi * scale)
    figure.suptitle(title, fontsize=11, color=TEXT_COLOUR)
    return figure_to_image(figure)


def _draw(axes, panel: Panel, zoom: float) -> None:
    """Draw one image. Each of its pixels becomes `zoom` pixels of the figure."""
    from matplotlib.patches import Rectangle

    width, height = panel.image.size
    extent = dict(extent=(0, width, height, 0), interpolation='nearest' if zoom > 2 else 'antialiased')
    axes.imshow(np.asarray(panel.image.convert('RGB')), **extent)
    if panel.mask is not None:
        axes.imshow(_veil(panel.mask), **extent)
        _outline(axes, panel.mask, round(max(zoom, 1)))
    if panel.box is not None:
        x1, y1, x2, y2 = (float(value) for value in panel.box)
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX_COLOUR, linewidth=2))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_title(panel.caption, fontsize=9, color=TEXT_COLOUR)
    axes.set_axis_off()


def _outline(axes, mask: np.ndarray, zoom: int) -> None:
    """Draw the edge of a mask. Where pixels are large, the edge follows them."""
    fine = np.kron(np.pad(mask, 1), np.ones((zoom, zoom)))
    y, x = ((np.arange(length) + 0.5) / zoom - 1 for length in fine.shape)
    if mask.any():
        axes.contour(x, y, fine, levels=[0.5], colors=[MASK_COLOUR], linewidths=1.8)


def _veil(mask: np.ndarray) -> np.ndarray:
    """White over what is outside of a mask: RGBA [H, W, 4] in [0, 1]."""
    veil = np.ones((*mask.shape, 4))
    veil[..., 3] = np.where(mask, 0, 0.7)
    return veil
