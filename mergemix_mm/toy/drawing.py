"""Draws coloured shapes on clutter with NumPy: soft tones, noise, bars and specks first, then the things."""

from functools import lru_cache

import numpy as np

PALETTE = dict(
    red=(0.90, 0.15, 0.15),
    green=(0.15, 0.75, 0.20),
    blue=(0.20, 0.30, 0.95),
    yellow=(0.95, 0.85, 0.15),
    purple=(0.70, 0.20, 0.85),
    white=(0.95, 0.95, 0.95),
)
NUM_BARS = 6
NUM_SPECKS = 4
NUM_TONES = 4
RADIUS = (0.32, 0.44)  # Of a thing, as a share of its cell's side.
VISIBLE = 0.5  # Share of a pixel that a thing covers from which on the pixel belongs to its mask.
BRIGHTNESS = (0.8, 1.05)  # A thing has a colour of the palette times a factor in this range.


def draw_clutter(size: int | tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A background with specks in the colours of the palette: a colour does not tell where the things are.

    Args:
        size (int | tuple[int, int]): Height and width in pixels; a number stands for both.
        rng (np.random.Generator): Source of all random numbers.

    Returns:
        np.ndarray: [H, W, 3] float, most values in [0, 0.6].
    """
    shape = (size, size) if isinstance(size, int) else size
    size = min(shape)
    tones = rng.uniform(0.1, 0.4, (NUM_TONES, NUM_TONES, 3)).astype(np.float32)
    rows, columns = (_interpolation(length) for length in shape)
    canvas = np.tensordot(np.tensordot(rows, tones, (1, 0)), columns, (1, 1)).transpose(0, 2, 1)
    canvas = canvas + 0.05 * rng.standard_normal(canvas.shape, dtype=np.float32)
    unit = size / 16
    places = rng.uniform(0, shape, (NUM_BARS + NUM_SPECKS, 2)).astype(int)
    lengths = np.maximum(rng.uniform(0.5, 2.5, (NUM_BARS, 2)) * unit, 1).astype(int)
    shades = rng.uniform(0.1, 0.6, (NUM_BARS, 3))
    for (top, left), (height, width), shade in zip(places[:NUM_BARS], lengths, shades, strict=True):
        canvas[top : top + height, left : left + width] = shade
    colors = tuple(PALETTE.values())
    side = max(round(0.75 * unit), 1)
    for (top, left), color in zip(places[NUM_BARS:], rng.integers(len(colors), size=NUM_SPECKS), strict=True):
        canvas[top : top + side, left : left + side] = colors[color]
    return canvas


def draw_thing(
    canvas: np.ndarray, color: str, shape: str, cell: tuple[int, int], grid: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw one thing inside its cell, in place, with a random size, place and brightness.

    Args:
        canvas (np.ndarray): [H, W, 3] float, written to.
        color (str): A key of `PALETTE`.
        shape (str): A key of `OUTLINES`.
        cell (tuple[int, int]): Row and column of the cell.
        grid (int): Number of cells along the shorter side; cells are square.
        rng (np.random.Generator): Source of size, place and brightness.

    Returns:
        np.ndarray: [H, W] bool, True where the thing covers at least half of a pixel.
    """
    side = min(canvas.shape[:2]) / grid
    radius = rng.uniform(*RADIUS) * side
    slack = side / 2 - radius
    middle = (np.array(cell) + 0.5) * side + rng.uniform(-slack, slack, 2)
    first = np.maximum(np.floor(middle - radius).astype(int), 0)
    last = np.minimum(np.ceil(middle + radius).astype(int), canvas.shape[:2])
    y, x = (np.arange(a, b) + 0.5 - m for a, b, m in zip(first, last, middle, strict=True))
    cover = np.clip(0.5 - OUTLINES[shape](x[None, :], y[:, None], radius), 0, 1)
    window = slice(first[0], last[0]), slice(first[1], last[1])
    tint = np.array(PALETTE[color]) * rng.uniform(*BRIGHTNESS)
    canvas[window] += cover[..., None] * (tint - canvas[window])
    mask = np.zeros(canvas.shape[:2], dtype=bool)
    mask[window] = cover >= VISIBLE
    return mask


def box_around(mask: np.ndarray) -> list[int]:
    """The box around a mask as x1, y1, x2, y2 in pixels; x2 and y2 are exclusive."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [int(value) for value in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def to_uint8(canvas: np.ndarray) -> np.ndarray:
    """Convert a canvas in [0, 1] to uint8; values outside are clipped."""
    return (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)


# Signed distance in pixels to the outline of each shape, negative inside. x [1, W] and y [H, 1] are relative to the
# middle, r is the radius. With distances, the cover of a border pixel is a clipped difference: edges are anti-aliased.
def _circle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.hypot(x, y) - r


def _ring(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.76 * r) - 0.24 * r


def _square(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.85 * r


def _diamond(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return (np.abs(x) + np.abs(y) - r) * 0.5**0.5


def _cross(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - r, np.minimum(x, y) - 0.3 * r)


def _triangle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """With its point up."""
    return np.maximum((2 * np.abs(x) - y - r) * 0.2**0.5, y - 0.85 * r)


OUTLINES = dict(circle=_circle, square=_square, triangle=_triangle, cross=_cross, ring=_ring, diamond=_diamond)


@lru_cache(maxsize=8)
def _interpolation(size: int) -> np.ndarray:
    """Weights [size, NUM_TONES] of a linear interpolation between tones on the corners of a grid."""
    place = np.linspace(0, NUM_TONES - 1, size, dtype=np.float32)
    return np.clip(1 - np.abs(place[:, None] - np.arange(NUM_TONES, dtype=np.float32)), 0, 1)
