"""From the coordinates in an answer to boxes in the pixels of its image."""

import torch
from torch import Tensor

from ...functional import CoordinateError, boxes_from_square, parse_boxes
from ...utils.text import shown
from .answers import get_field


def read_boxes(sample: dict, metric: str) -> Tensor | None:
    """The boxes that an answer names, in their order.

    Args:
        sample (dict): A data sample with ``pred_answer`` (str: boxes xyxy of the square-padded image, in [0, 1]),
            ``image_size`` (height and width in pixels) and perhaps ``align``, where the image lies in its square
            (``'center'``, unless given, or ``'corner'``).
        metric (str): Who asks, for the error.

    Returns:
        Tensor, optional: [n, 4] float64, n >= 1, xyxy in pixels, clipped to the image; None if the answer is malformed:
        it names no box, or a key point, or :func:`~mergemix_mm.functional.parse_boxes` refuses it.

    Raises:
        KeyError: If the sample has no ``pred_answer`` or ``image_size``.
    """
    answer, size = (get_field(sample, key, metric) for key in ('pred_answer', 'image_size'))
    try:
        found = parse_boxes(answer)
    except CoordinateError:
        return None
    if not found or any(len(box) != 4 for box in found):
        return None
    boxes = torch.tensor(found, dtype=torch.float64)
    return boxes_from_square(boxes, tuple(size), sample.get('align', 'center'))


def true_boxes(sample: dict, metric: str) -> Tensor:
    """The boxes that an answer should name.

    Args:
        sample (dict): A data sample with ``gt_boxes``, [n, 4], xyxy in pixels.
        metric (str): Who asks, for the error.

    Returns:
        Tensor: [n, 4] float64.

    Raises:
        KeyError: If the sample has no ``gt_boxes``.
        ValueError: If they are no boxes, or one has no width or height: nothing could be found there.
    """
    given = get_field(sample, 'gt_boxes', metric)
    try:
        boxes = torch.as_tensor(given).double().reshape(-1, 4)
    except (RuntimeError, TypeError, ValueError):
        boxes = torch.full((1, 4), torch.nan)
    if not (boxes.isfinite().all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        where = sample.get('source', sample.get('image_id', 'a sample'))
        raise ValueError(
            f'{metric}: {shown(where)}: gt_boxes={shown(given)} must be boxes [[x1, y1, x2, y2], ...] of finite '
            'numbers, with a width and a height above 0'
        )
    return boxes
