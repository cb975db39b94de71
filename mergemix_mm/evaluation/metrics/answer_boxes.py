"""From the coordinates in an answer to boxes in the pixels of its image."""

import torch
from torch import Tensor

from ...functional import CoordinateError, boxes_from_square, parse_boxes
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
