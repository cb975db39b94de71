"""Boxes and key points in pixels, as annotation files give them."""

from collections.abc import Sequence

import numpy as np


def clip_to_image(rows: Sequence[Sequence[float]], size: tuple[int, int]) -> list[list[float]]:
    """Put inside the image what overhangs by rounding.

    Args:
        rows (Sequence): Boxes xyxy, [n, 4], or key points xy, [n, 2], in pixels.
        size (tuple[int, int]): Height and width of the image.

    Raises:
        ValueError: If a row overhangs by a pixel or more, is no box (x2 < x1 or y2 < y1), or the shape is another.
    """
    try:
        points = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] not in (2, 4):
        raise ValueError(f'{rows} must be a list of boxes (x1, y1, x2, y2) or of key points (x, y), in pixels')
    limits = np.resize(size[::-1], points.shape[1])
    outside = ~((points > -1) & (points < limits + 1)).all(1)
    if outside.any():
        raise ValueError(f'{points[outside][0].tolist()} lies outside its image, which is {size[1]} x {size[0]} pixels')
    if points.shape[1] == 4 and (points[:, 2:] < points[:, :2]).any():
        wrong = (points[:, 2:] < points[:, :2]).any(1)
        raise ValueError(f'{points[wrong][0].tolist()} is not a box: x2 < x1 or y2 < y1')
    return points.clip(0, limits).tolist()
