"""Boxes and key points as plain text, and back (the coordinates of SPHINX, arXiv 2311.07575).

A box has four numbers, x1, y1, x2, y2, and a key point two, x, y. All are fractions of the square-padded image, in
[0, 1], with a fixed number of decimals. A pair of brackets holds one or several of them:
``[0.100,0.200,0.300,0.400;0.500,0.600]``. A phrase before it says what they belong to:
``<p>a red ring</p>[0.100,0.200,0.300,0.400]``.
"""

import re
from collections.abc import Iterable, Sequence

Coordinates = tuple[float, ...]

# Half a unit of the usual last decimal: a number that is so far outside of [0, 1] was rounded.
TOLERANCE = 5e-4
# Each text matches in only one way, so that a regular expression never backtracks over thousands of digits.
_NUMBER = re.compile(r'[+-]?(?:\d+(?:\.\d*)?|\.\d+)')
_BRACKET = re.compile(r'\[([^\[\]]*)\]')
_PHRASE = re.compile(r'<p>((?:(?!</?p>).)*)</p>', re.DOTALL)
_PLAIN = rf'{_NUMBER.pattern}%?'
_FAMILY_BOX = re.compile(
    rf'\[\s*{_PLAIN}(?:\s*,\s*{_PLAIN}){{3}}\s*\]'
    rf'|\(\s*{_PLAIN}(?:\s*,\s*{_PLAIN}){{3}}\s*\)'
    rf'|\[\s*\[\s*{_PLAIN}\s*,\s*{_PLAIN}\s*\]\s*,\s*\[\s*{_PLAIN}\s*,\s*{_PLAIN}\s*\]\s*\]'
    rf'|<b?box>\s*{_PLAIN}(?:(?:\s*,\s*|\s+){_PLAIN}){{3}}\s*</b?box>'
    rf'|\(\s*{_PLAIN}\s*,\s*{_PLAIN}\s*\)\s*,?\s*\(\s*{_PLAIN}\s*,\s*{_PLAIN}\s*\)'
    rf'|\{{\s*(?:<{_PLAIN}>\s*){{4}}\}}|(?:<loc\d{{4}}>){{4}}(?!<loc)'
)
# The bracket directly after a phrase. It also matches one that is never closed, so that it is refused, not ignored.
_BRACKET_AFTER = re.compile(r'\s*\[[^\]]*\]?')


class CoordinateError(ValueError):
    """Text that holds no valid coordinates, or numbers that cannot be written as such."""


def format_boxes(boxes: Iterable[Sequence[float]], decimals: int = 3) -> str:
    """Write boxes and key points into one pair of brackets.

    Args:
        boxes (Iterable): At least one row of four (xyxy) or two (xy) numbers in [0, 1], up to rounding.
        decimals (int): Digits after the point. Defaults to 3.

    Raises:
        CoordinateError: If there is no row, a row has another length, or x2 < x1, y2 < y1, or a number outside [0, 1].

    Examples:
        >>> format_boxes([(0, 0.25, 0.5, 1)])
        '[0.000,0.250,0.500,1.000]'
    """
    rows = [[_inside(float(value), 0.5 * 10**-decimals) for value in row] for row in boxes]
    if not rows:
        raise CoordinateError('there is no box to write')
    # The corners are compared as printed: a smaller difference is rounding.
    texts = [[f'{value:.{decimals}f}' for value in row] for row in rows]
    for row in texts:
        _check([float(text) for text in row], ','.join(row))
    return f'[{";".join(",".join(row) for row in texts)}]'


def parse_boxes(text: str) -> list[Coordinates]:
    """Read the boxes and key points of all brackets in a text, in order.

    White space is allowed between numbers and separators; a number may have no decimals.

    Args:
        text (str): Such as an answer. Text outside of brackets is ignored.

    Returns:
        list[tuple[float, ...]]: Four numbers (box) or two (key point) each, in [0, 1]; empty without brackets.

    Raises:
        CoordinateError: If a bracket is not closed or was not opened, or one of its rows is malformed: not two or four
            numbers, a number outside [0, 1], x2 < x1 or y2 < y1.

    Examples:
        >>> parse_boxes('at [0, 0.25, 0.5, 1] and [.3,.4]')
        [(0.0, 0.25, 0.5, 1.0), (0.3, 0.4)]
    """
    stray = re.search(r'[\[\]].{0,30}', _BRACKET.sub('', text), re.DOTALL)
    if stray:
        raise CoordinateError(f'a bracket without its counterpart: {stray[0]!r}')
    return [_parse_row(row) for inside in _BRACKET.findall(text) for row in inside.split(';')]


def parse_family_boxes(text: str, largest: Sequence[float], y_first: bool = False) -> list[Coordinates]:
    """Read boxes as other model families write them; the caller knows the unit of the coordinates.

    Four numbers each, in one of these notations: ``[x1, y1, x2, y2]``, also in further brackets, in tags (``<box>``,
    ``<|box_start|>``) or in JSON (``"bbox_2d": [...]``); ``(x1, y1, x2, y2)``; ``(x1,y1),(x2,y2)``;
    ``[[x1,y1],[x2,y2]]``; ``<box>x1 y1 x2 y2</box>``, with commas as well; ``{<x1><y1><x2><y2>}``; or, for ``y_first``,
    ``<loc0123>`` four times. Any text may surround them.

    Args:
        text (str): Such as an answer.
        largest (Sequence[float]): The coordinates x and y of the lower right corner, in the unit of the answer.
        y_first (bool): Whether the order is y1, x1, y2, x2. Defaults to False.

    Returns:
        list[tuple[float, ...]]: Boxes x1, y1, x2, y2 in [0, 1]; empty where no box is named.

    Raises:
        CoordinateError: If a bracket does not hold four numbers, or is not closed, a number is outside its range, or
            x2 < x1 or y2 < y1. A number is never taken for one in another unit.

    Examples:
        >>> parse_family_boxes('<box>(250,500),(750,1000)</box>', (1000, 1000))
        [(0.25, 0.5, 0.75, 1.0)]
    """
    found = list(_FAMILY_BOX.finditer(text))
    rest = _FAMILY_BOX.sub(' ', text)
    stray = re.search(r'(?:\[\s*[-+.\d]|\(\s*[-+.\d]+\s*,\s*[-+.\d]|\{\s*<\d|<loc\d)[^\n]{0,30}', rest)
    if stray or rest.count('[') != rest.count(']'):
        raise CoordinateError(f'no box of four numbers in brackets: {(stray[0] if stray else rest)[:40]!r}')
    boxes = []
    for match in found:
        row = [float(number) for number in _NUMBER.findall(match[0])]
        if y_first:
            row = [row[1], row[0], row[3], row[2]]
        # Such models write at least three places of a fraction; half a unit of the third is rounding.
        row = [_inside(value / largest[i % 2], TOLERANCE) for i, value in enumerate(row)]
        _check(row, match[0])
        boxes.append(tuple(row))
    return boxes


def format_phrase(phrase: str, boxes: Iterable[Sequence[float]], decimals: int = 3) -> str:
    """Write a phrase with its boxes or key points: ``<p>a red ring</p>[...]``.

    Raises:
        CoordinateError: If the phrase holds ``<p>`` or ``</p>`` itself, or :func:`format_boxes` refuses the boxes.
    """
    if re.search('</?p>', phrase):
        raise CoordinateError(f'the phrase {phrase!r} holds a mark of phrases')
    return f'<p>{phrase}</p>{format_boxes(boxes, decimals)}'


def parse_phrases(text: str) -> list[tuple[str, list[Coordinates]]]:
    """Read the phrases of a text and the boxes or key points of the brackets directly after each.

    Returns:
        list[tuple[str, list]]: Phrase (without surrounding space) and its boxes, as of :func:`parse_boxes`; none for a
        phrase without brackets.

    Raises:
        CoordinateError: If a mark ``<p>`` or ``</p>`` has no counterpart, or a bracket after a phrase is malformed.

    Examples:
        >>> parse_phrases('<p>a ring</p>[0.1,0.2,0.3,0.4] beside <p>a cross</p>[0.5,0.2,0.7,0.4]')
        [('a ring', [(0.1, 0.2, 0.3, 0.4)]), ('a cross', [(0.5, 0.2, 0.7, 0.4)])]
    """
    # The pieces alternate: a phrase, and the text from there to the next phrase.
    before, *pieces = _PHRASE.split(text)
    stray = re.search('</?p>.{0,30}', ' '.join([before, *pieces[1::2]]), re.DOTALL)
    if stray:
        raise CoordinateError(f'a mark of phrases without its counterpart: {stray[0]!r}')
    brackets = [_BRACKET_AFTER.match(rest) for rest in pieces[1::2]]
    return [(phrase.strip(), parse_boxes(found[0]) if found else []) for phrase, found in zip(pieces[::2], brackets)]


def _parse_row(text: str) -> Coordinates:
    if not text.strip():
        raise CoordinateError('a bracket, or a row of one, is empty')
    values = [value.strip() for value in text.split(',')]
    for value in values:
        if not _NUMBER.fullmatch(value):
            raise CoordinateError(f'{value!r} in {text.strip()!r} is not a number')
    row = tuple(_inside(float(value), TOLERANCE) for value in values)
    _check(row, text.strip())
    return row


def _inside(value: float, tolerance: float) -> float:
    """The number, clipped to [0, 1]; one that is outside by more than the tolerance is refused."""
    if not -tolerance <= value <= 1 + tolerance:  # NaN included
        raise CoordinateError(f'{value:g} is outside [0, 1]')
    return min(max(value, 0.0), 1.0)


def _check(row: Sequence[float], text: str) -> None:
    if len(row) not in (2, 4):
        raise CoordinateError(f'{text!r} has {len(row)} numbers; a box has 4 (x1, y1, x2, y2), a key point 2 (x, y)')
    if len(row) == 4 and (row[2] < row[0] or row[3] < row[1]):
        raise CoordinateError(f'{text!r} is not a box: x2 < x1 or y2 < y1')
