"""Tests of pixel coordinates of annotation files."""

import pytest

from mergemix_mm.datasets.io.boxes import clip_to_image


def test_what_overhangs_by_less_than_a_pixel_is_clipped():
    assert clip_to_image([[-0.9, 0, 20.9, 10.5], [3, 4, 5, 6]], (10, 20)) == [[0, 0, 20, 10], [3, 4, 5, 6]]
    assert clip_to_image([(20.5, -0.5)], (10, 20)) == [[20, 0]]


@pytest.mark.parametrize(
    ('rows', 'found'),
    [
        ([[0, 0, 2, 2], [0, 0, 21, 5]], r'\[0\.0, 0\.0, 21\.0, 5\.0\] lies outside its image, which is 20 x 10 pixels'),
        ([[-1, 0, 5, 5]], 'lies outside'),
        ([[0, 11, 5, 12]], 'lies outside'),
        ([[float('nan'), 0]], 'lies outside'),
        ([[5, 0, 4, 5]], r'\[5\.0, 0\.0, 4\.0, 5\.0\] is not a box: x2 < x1'),
        ([[1, 2, 3]], 'must be a list of boxes'),
        ([[1, 2], [1, 2, 3, 4]], 'must be a list of boxes'),
        ([1, 2, 3, 4], 'must be a list of boxes'),
        ([], 'must be a list of boxes'),
        (None, 'None must be a list of boxes'),
        ([['a', 2]], 'must be a list of boxes'),
        ([['1', '2', '3', '4']], 'must be a list of boxes'),
        ([[True, False, True, True]], 'must be a list of boxes'),
        ([[0, 0, None, 1]], 'must be a list of boxes'),
        ([[0, 0, 1, 10**400]], 'must be a list of boxes'),
        ('1234', 'must be a list of boxes'),
        ([[0, 0, float('inf'), 5]], 'lies outside'),
        ([[0, 0, float('nan'), 5]], 'lies outside'),
        ([[0, 0, 5, 5], [5, 0, 5, 5]], r'\[5\.0, 0\.0, 5\.0, 5\.0\] has width or height 0 in its image'),
        ([[5, 3, 9, 3]], 'has width or height 0'),
        ([[20, 0, 20.5, 5]], r'\[20\.0, 0\.0, 20\.5, 5\.0\] has width or height 0 in its image'),
        ([[-0.9, 0, -0.1, 5]], 'has width or height 0 in its image'),
    ],
)
def test_what_is_no_box_of_the_image_is_refused(rows, found):
    with pytest.raises(ValueError, match=found):
        clip_to_image(rows, (10, 20))


def test_boxes_of_an_image_of_unknown_size_are_checked_and_not_clipped():
    assert clip_to_image([[-3, 0, 20.9, 1000]], None) == [[-3, 0, 20.9, 1000]]
    for box, found in (
        ([1, 1, 1, 2], 'width or height 0'),
        ([2, 1, 1, 2], 'is not a box'),
        ([0, 0, 1, float('inf')], ''),
    ):
        with pytest.raises(ValueError, match=found or 'is not finite'):
            clip_to_image([box], None)


def test_the_message_does_not_grow_with_the_rows():
    with pytest.raises(ValueError) as caught:
        clip_to_image([['x' * 5000] * 5000], (10, 20))
    assert len(str(caught.value)) < 200
