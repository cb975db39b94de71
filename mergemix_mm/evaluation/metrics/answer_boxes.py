"""From the coordinates in an answer to boxes in the pixels of its image."""

import re
import unicodedata

import torch
from torch import Tensor

from ...functional import CoordinateError, boxes_from_square, parse_boxes, parse_family_boxes
from ...utils.numbers import is_number
from ...utils.text import shown
from .answers import get_field, without_thoughts

_UNITS = dict(unit=1, percent=100, permille=1000, loc=1024)
COORDINATES = ('square', *_UNITS, 'pixels')


def check_coordinates(coordinates: str, metric: str) -> None:
    """Refuse a unit that :func:`read_boxes` does not know.

    Raises:
        ValueError: If it is none of ``COORDINATES``.
    """
    if coordinates not in COORDINATES:
        raise ValueError(f'{metric}: coordinates={coordinates!r} must be one of {COORDINATES}.')


def read_boxes(sample: dict, metric: str, coordinates: str = 'square') -> Tensor | None:
    """The boxes that an answer names, in their order.

    Thoughts (``<think>``) do not count. ``coordinates`` says what the numbers of an answer mean; this is never guessed
    from the numbers:

    - ``'square'``: [0, 1] of the square-padded image in SPHINX's notation,
      :func:`~mergemix_mm.functional.parse_boxes`;
    - ``'unit'``, ``'percent'``, ``'permille'``: 0 to 1, 100 or 1000 of the image's own width and height, in any
      notation of :func:`~mergemix_mm.functional.parse_family_boxes`. Per mille is how Qwen-VL, Qwen2-VL, Qwen3-VL,
      InternVL and CogVLM answer, percent how MiniGPT-v2 does;
    - ``'loc'``: PaliGemma's ``<loc0123>`` four times, y first, 0 to 1024;
    - ``'pixels'``: of the image that the model saw, as Qwen2.5-VL answers: ``input_size`` of the sample, or
      ``image_size`` where the image was not resized.

    Args:
        sample (dict): A data sample with ``pred_answer`` (str) and ``image_size`` (height and width in pixels).
            Optional fields are ``align``, the place of the image in its square (``'center'`` or ``'corner'``; defaults
            to ``'center'``), and ``input_size`` (height and width).
        metric (str): The name of the metric, for errors.
        coordinates (str): What the numbers mean. Defaults to ``'square'``.

    Returns:
        Tensor, optional: [n, 4] float64, n >= 1, xyxy in pixels, clipped to the image. None if the answer is malformed:
        it names no box, or a key point, or the parser refuses it.

    Raises:
        KeyError: If the sample has no ``pred_answer`` or ``image_size``.
        ValueError: If ``input_size`` is not a height and a width.
    """
    answer, size = (get_field(sample, key, metric) for key in ('pred_answer', 'image_size'))
    # Models that learnt Chinese write full-width commas and brackets.
    answer = unicodedata.normalize('NFKC', without_thoughts(answer))
    try:
        found = parse_boxes(answer) if coordinates == 'square' else _parse(answer, sample, size, metric, coordinates)
    except CoordinateError:
        return None
    if not found or any(len(box) != 4 for box in found):
        return None
    boxes = torch.tensor(found, dtype=torch.float64)
    if coordinates == 'square':
        return boxes_from_square(boxes, tuple(size), sample.get('align', 'center'))
    return boxes * boxes.new_tensor([size[1], size[0], size[1], size[0]])


def _parse(answer: str, sample: dict, size: tuple[int, int], metric: str, coordinates: str) -> list[tuple[float, ...]]:
    """Boxes in [0, 1] of the image."""
    # Some notations belong to one unit. In an answer in another unit they are malformed.
    notations = dict(loc=r'<loc\d', percent=r'\d\s*%')
    if any(unit != coordinates and re.search(notation, answer) for unit, notation in notations.items()):
        return []
    if coordinates == 'loc' and re.search(r'[\[({]\s*<?\d', answer):
        return []
    if coordinates != 'pixels':
        return parse_family_boxes(answer, [_UNITS[coordinates]] * 2, y_first=coordinates == 'loc')
    seen = sample.get('input_size', size)
    if len(seen) != 2 or not all(is_number(side, above=0) for side in seen):
        raise ValueError(f'{metric}: input_size={shown(seen)} must be the height and width of the image that was seen')
    return parse_family_boxes(answer, (seen[1], seen[0]))


def true_boxes(sample: dict, metric: str) -> Tensor:
    """The boxes that an answer should name.

    Args:
        sample (dict): A data sample with ``gt_boxes``, [n, 4], xyxy in pixels.
        metric (str): The name of the metric, for errors.

    Returns:
        Tensor: [n, 4] float64.

    Raises:
        KeyError: If the sample has no ``gt_boxes``.
        ValueError: If they are not boxes, or a box has no width or height: no answer could be right.
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
