"""Tests of pixel coordinates of annotation files."""

import pytest

from mergemix_mm.datasets.io.boxes import clip_to_image

NAN, INF = float('nan'), float('inf')


def test_what_overhangs_by_less_than_a_pixel_is_clipped():
    assert clip_to_image([[-0.9, 0, 20.9, 10.5], [3, 4, 5, 6]], (10, 20)) == [[0, 0, 20, 10], [3, 4, 5, 6]]
    assert clip_to_image([(20.5, -0.5)], (10, 20)) == [[20, 0]]


@pytest.mark.parametrize(
    ('rows', 'found'),
    [
        ([[0, 0, 2, 2], [0, 0, 21, 5]], r'\[0\.0, 0\.0, 21\.0, 5\.0\] .*20 x 10 pixels'),
        *(([[*row]], 'outside') for row in ((-1, 0, 5, 5), (0, 11, 5, 12), (NAN, 0), (0, 0, INF, 5), (0, 0, NAN, 5))),
        ([[5, 0, 4, 5]], r'\[5\.0, 0\.0, 4\.0, 5\.0\] .*x2 < x1'),
        ([[0, 0, 5, 5], [5, 0, 5, 5]], r'\[5\.0, 0\.0, 5\.0, 5\.0\] .* 0 in its image'),
        ([[20, 0, 20.5, 5]], r'\[20\.0, 0\.0, 20\.5, 5\.0\] .* 0 in its image'),
        *(([[*row]], '0 in its image') for row in ((5, 3, 9, 3), (-0.9, 0, -0.1, 5))),
        *((rows, 'list of boxes') for rows in ([[1, 2, 3]], [[1, 2], [1, 2, 3, 4]], [1, 2, 3, 4], [], None, '1234')),
        *(([[*row]], 'list of boxes') for row in ('a2', '1234', (True, False, True, True), (0, 0, None, 1))),
        ([[0, 0, 1, 10**400]], 'list of boxes'),
    ],
)
def test_what_is_no_box_of_the_image_is_refused(rows, found):
    with pytest.raises(ValueError, match=found):
        clip_to_image(rows, (10, 20))


def test_boxes_of_an_image_of_unknown_size_are_checked_and_not_clipped():
    assert clip_to_image([[-3, 0, 20.9, 1000]], None) == [[-3, 0, 20.9, 1000]]
    for box, found in (([1, 1, 1, 2], 'height 0'), ([2, 1, 1, 2], 'not a box'), ([0, 0, 1, INF], 'finite')):
        with pytest.raises(ValueError, match=found):
            clip_to_image([box], None)


def test_the_message_does_not_grow_with_the_rows():
    with pytest.raises(ValueError) as caught:
        clip_to_image([['x' * 5000] * 5000], (10, 20))
    assert len(str(caught.value)) < 200
