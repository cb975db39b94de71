"""Tests of the coordinates codec."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergemix_mm.functional import (
    CoordinateError,
    boxes_from_square,
    boxes_to_square,
    format_boxes,
    format_phrase,
    parse_boxes,
    parse_family_boxes,
    parse_phrases,
)

numbers = st.floats(0, 1)
points = st.tuples(numbers, numbers)
boxes = st.builds(
    lambda a, b: (min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1])),
    points,
    points,
)
rows = st.lists(st.one_of(boxes, points), min_size=1, max_size=6)


def on_the_grid(decimals):
    """Canonical texts: rows of numbers that have exactly so many decimals."""
    number = st.integers(0, 10**decimals)
    point = st.tuples(number, number)
    box = st.builds(lambda a, b: (*map(min, a, b), *map(max, a, b)), point, point)
    row = st.one_of(box, point).map(lambda row: ','.join(f'{value / 10**decimals:.{decimals}f}' for value in row))
    return st.lists(row, min_size=1, max_size=6).map(lambda found: f'[{";".join(found)}]')


def test_a_box_and_a_point_are_written_with_fixed_decimals():
    assert format_boxes([(0.1, 0.2, 0.3, 0.4)]) == '[0.100,0.200,0.300,0.400]'
    assert format_boxes([(0, 0.25, 0.5, 1), (1 / 3, 2 / 3)], decimals=2) == '[0.00,0.25,0.50,1.00;0.33,0.67]'
    assert format_boxes([(0.4, 1.0)], decimals=0) == '[0,1]'


@given(st.integers(1, 6).flatmap(lambda decimals: st.tuples(st.just(decimals), on_the_grid(decimals))))
def test_text_to_boxes_to_text_is_the_same_text(given_):
    decimals, text = given_
    assert format_boxes(parse_boxes(text), decimals) == text


@given(rows, st.integers(0, 8))
def test_boxes_to_text_to_boxes_are_the_same_to_the_printed_precision(rows, decimals):
    found = parse_boxes(format_boxes(rows, decimals))
    assert found == [tuple(float(f'{value:.{decimals}f}') for value in row) for row in rows]


@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.sampled_from(['center', 'corner']),
    st.integers(1, 5),
)
def test_text_to_boxes_to_pixels_and_back_is_the_same_text(size, shares, align, decimals):
    height, width = size
    (x1, x2), (y1, y2) = sorted(shares[:2]), sorted(shares[2:])
    pixels = torch.tensor([[x1 * width, y1 * height, x2 * width, y2 * height]], dtype=torch.float64)
    text = format_boxes(boxes_to_square(pixels, size, align).tolist(), decimals)
    found = boxes_from_square(torch.tensor(parse_boxes(text), dtype=torch.float64), size, align)
    assert (found - pixels).abs().max() <= 0.5001 * 10**-decimals * max(size)
    assert format_boxes(boxes_to_square(found, size, align).tolist(), decimals) == text


def test_numbers_need_no_point_and_spaces_may_stand_anywhere():
    assert parse_boxes('[0,0,1,1]') == [(0, 0, 1, 1)]
    assert parse_boxes('[ 0 , 0.5\n,1 , 1.000 ; .25,\t1. ]') == [(0, 0.5, 1, 1), (0.25, 1)]


def test_all_brackets_are_read_in_order_and_other_text_is_ignored():
    text = 'A ring [0.5,0.5,0.6,0.6], 3 crosses [0,0,0.1,0.1;0.2,0.2,0.3,0.3] and a nose [0.7,0.8].'
    assert parse_boxes(text) == [(0.5, 0.5, 0.6, 0.6), (0, 0, 0.1, 0.1), (0.2, 0.2, 0.3, 0.3), (0.7, 0.8)]
    assert parse_boxes('I see nothing of 0.5,0.5') == []


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('[0.1,0.2,0.3]', r"'0.1,0.2,0.3' has 3 numbers; a box has 4"),
        ('[0.1,0.2,0.3,0.4,0.5]', 'has 5 numbers'),
        ('[0.1]', 'has 1 numbers'),
        ('[]', 'a bracket, or a row of one, is empty'),
        ('[0.1,0.2; ]', 'a bracket, or a row of one, is empty'),
        ('[0.1,0.2,]', "'' in '0.1,0.2,' is not a number"),
        ('[0.1,0.2,0.3,x]', "'x' in '0.1,0.2,0.3,x' is not a number"),
        ('[0.1 0.2,0.3]', "'0.1 0.2' in .* is not a number"),
        ('[nan,0]', "'nan' in 'nan,0' is not a number"),
        ('[inf,0]', "'inf' in 'inf,0' is not a number"),
        ('[1_0,0]', "'1_0' in '1_0,0' is not a number"),
        ('[1e-3,0]', "'1e-3' in '1e-3,0' is not a number"),
        ('[0.1,0.2,0.3,1.001]', r'1\.001 is outside \[0, 1\]'),
        ('[-0.001,0.2,0.3,1]', r'-0\.001 is outside \[0, 1\]'),
        ('[224,100]', r'224 is outside \[0, 1\]'),
        ('[0.3,0.2,0.1,0.4]', "'0.3,0.2,0.1,0.4' is not a box: x2 < x1"),
        ('[0.1,0.4,0.3,0.2]', 'is not a box: x2 < x1 or y2 < y1'),
        ('[0.1,0.2,0.3,0.4', r"a bracket without its counterpart: '\[0.1,0.2,0.3,0.4'"),
        ('0.1,0.2]', r"a bracket without its counterpart: '\]'"),
        ('[[0.1,0.2,0.3,0.4]]', r"a bracket without its counterpart: '\[\]'"),
    ],
)
def test_malformed_text_is_refused_with_what_was_found(text, found):
    with pytest.raises(CoordinateError, match=found):
        parse_boxes(f'a ring at {text}')


def test_what_overhangs_by_less_than_the_last_decimal_is_put_inside():
    assert parse_boxes('[-0.0001,0,1.00049,1]') == [(0, 0, 1, 1)]
    assert format_boxes([(-1e-9, 0.5, 1 + 1e-9, 1.0004)]) == '[0.000,0.500,1.000,1.000]'
    assert format_boxes([(0.5004, 0, 0.5, 1)]) == '[0.500,0.000,0.500,1.000]'
    with pytest.raises(CoordinateError, match=r'1\.0004 is outside'):
        format_boxes([(0, 0, 0, 1.0004)], decimals=4)


def test_what_is_no_box_cannot_be_written():
    for boxes, found in (
        ([], 'there is no box to write'),
        ([(0.1, 0.2, 0.3)], 'has 3 numbers'),
        ([(0.5, 0.2, 0.3, 0.4)], "'0.500,0.200,0.300,0.400' is not a box"),
        ([(0.1, float('nan'))], r'nan is outside \[0, 1\]'),
        ([(0.1, 1.1)], r'1\.1 is outside \[0, 1\]'),
    ):
        with pytest.raises(CoordinateError, match=found):
            format_boxes(boxes)


def test_phrases_come_with_the_boxes_right_behind_them():
    text = '<p>a red ring</p>[0.1,0.2,0.3,0.4;0.5,0.5,0.6,0.6] beside <p> [EXIT]\nA </p> [0.7,0.8], <p>sky</p> [0.1'
    with pytest.raises(CoordinateError, match='a bracket without its counterpart'):
        parse_phrases(text)
    assert parse_phrases(text + ',0.1]') == [
        ('a red ring', [(0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.6, 0.6)]),
        ('[EXIT]\nA', [(0.7, 0.8)]),
        ('sky', [(0.1, 0.1)]),
    ]
    assert parse_phrases('<p>sky</p> above [0.1,0.1]') == [('sky', [])]
    assert parse_phrases('no phrase [0.1,0.1]') == []


@given(st.text(st.characters(exclude_characters='<>'), min_size=1).map(str.strip).filter(len), rows)
def test_phrases_survive_the_round_trip(phrase, rows):
    text = f'Here: {format_phrase(phrase, rows, 4)}.'
    assert parse_phrases(text) == [(phrase, parse_boxes(format_boxes(rows, 4)))]


@pytest.mark.parametrize('text', ['<p>ring', 'ring</p>[0,0]', '<p>a <p>ring</p>[0,0]', '<p>ring</p>[0,0]</p>'])
def test_marks_without_a_counterpart_are_refused(text):
    with pytest.raises(CoordinateError, match='a mark of phrases without its counterpart'):
        parse_phrases(text)
    with pytest.raises(CoordinateError, match='holds a mark of phrases'):
        format_phrase(text, [(0, 0)])


def test_a_row_of_many_digits_is_read_in_linear_time():
    # Over 100 s where a pattern has several ways to read one number; the limit is far above what one way takes.
    text = f'<box>(100,200),(300,{20_000 * "9"}'
    with pytest.raises(CoordinateError):
        parse_family_boxes(f'{text})</box>', (1000, 1000))
    assert parse_family_boxes(text.replace('(', ''), (1000, 1000)) == []
