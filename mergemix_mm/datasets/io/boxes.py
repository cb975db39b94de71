"""Boxes and key points in pixels, as annotation files give them."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from ...utils.text import quoted


def clip_to_image(rows: Sequence[Sequence[float]], size: tuple[int, int] | None) -> list[list[float]]:
    """Clip to the image what overhangs by less than a pixel, as rounded annotations do.

    Args:
        rows (Sequence): Boxes xyxy, [n, 4], or key points xy, [n, 2], in pixels.
        size (tuple[int, int], optional): Height and width of the image. None if they are not known; then nothing is
            clipped.

    Returns:
        list[list[float]]: The rows in the same order, clipped.

    Raises:
        ValueError: If a row overhangs by a pixel or more, is not a box (x2 < x1 or y2 < y1), has no width or height
            inside the image, or holds anything but finite numbers; or if the shape is another.
    """
    points = _numbers(rows)
    if points.ndim != 2 or points.shape[1] not in (2, 4):
        raise ValueError(f'{quoted(rows)} must be a list of boxes (x1, y1, x2, y2) or of key points (x, y), in pixels')
    limits = np.inf if size is None else np.resize(size[::-1], points.shape[1])
    lowest = -np.inf if size is None else 0
    outside = ~((points > lowest - 1) & (points < limits + 1)).all(1)
    if outside.any():
        where = 'is not finite' if size is None else f'lies outside its image, which is {size[1]} x {size[0]} pixels'
        raise ValueError(f'{_first(points, outside)} {where}')
    clipped = points.clip(lowest, limits)
    if points.shape[1] == 4:
        turned = (points[:, 2:] < points[:, :2]).any(1)
        if turned.any():
            raise ValueError(f'{_first(points, turned)} is not a box: x2 < x1 or y2 < y1')
        flat = (clipped[:, 2:] <= clipped[:, :2]).any(1)
        if flat.any():
            raise ValueError(f'{_first(points, flat)} has width or height 0 in its image, which is not a target')
    return clipped.tolist()


def _numbers(rows: Any) -> np.ndarray:
    """The rows as float64, or an array without dimensions unless all values are numbers.

    NumPy would also take '3' and True for numbers.
    """
    try:
        rows = [list(row) for row in rows]
        if all(isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) for row in rows for value in row):
            return np.asarray(rows, dtype=np.float64)
    except (OverflowError, TypeError, ValueError):
        pass
    return np.empty(())


def _first(points: np.ndarray, wrong: np.ndarray | np.bool_) -> list[float]:
    return points[wrong][0].tolist()
