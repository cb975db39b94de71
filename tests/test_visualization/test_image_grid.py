"""Tests of the grid of images with boxes."""

import numpy as np
import pytest

from mergemix_mm.visualization import draw_image_grid
from mergemix_mm.visualization.image_grid import PREDICTED_COLOUR, TRUE_COLOUR

GREY = np.full((40, 40, 3), 90, np.uint8)


def mask_of(image, colour):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(image.astype(int) - rgb).max(-1) < 30


def test_boxes_are_drawn_around_their_pixels():
    scene = GREY.copy()
    scene[10:20, 4:30] = 255
    image = draw_image_grid([scene], predicted=[[(4, 10, 30, 20)]])
    legend = 40
    rows, columns = np.nonzero(mask_of(image, PREDICTED_COLOUR)[legend:])
    white_rows = np.nonzero((image[legend:] == 255).all(-1)[:, 20:150])[0]
    inside = (white_rows > 10) & (white_rows < 110)
    # The frame is as thick as a line around the white pixels, which are 26 x 10 of 40 x 40 in 165 x 165.
    assert columns.max() - columns.min() == pytest.approx(26 * 165 / 40, abs=6)
    assert rows.max() - rows.min() == pytest.approx(10 * 165 / 40, abs=6)
    assert rows.min() == pytest.approx(white_rows[inside].min(), abs=5)


def test_predicted_and_true_boxes_have_their_own_colours_and_an_image_may_have_none():
    box = [(5, 5, 30, 30)]
    both = draw_image_grid([GREY, GREY], predicted=[box, []], true=[[], box])
    middle, below = both.shape[1] // 2, 40
    left, right = both[below:, :middle], both[below:, middle:]
    assert mask_of(left, PREDICTED_COLOUR).any() and not mask_of(left, TRUE_COLOUR).any()
    assert mask_of(right, TRUE_COLOUR).any() and not mask_of(right, PREDICTED_COLOUR).any()


def test_rows_and_captions_make_the_page_higher():
    sizes = [
        draw_image_grid([GREY] * 3, columns=3).shape[:2],
        draw_image_grid([GREY] * 4, columns=3).shape[:2],
        draw_image_grid([GREY] * 3, captions=['a', 'b', 'a caption that is longer than a line'], columns=3).shape[:2],
    ]
    assert len({width for _, width in sizes}) == 1
    assert sizes[1][0] == pytest.approx(2 * sizes[0][0], abs=20) and sizes[2][0] > sizes[0][0] + 30


def test_one_entry_per_image():
    with pytest.raises(ValueError, match=r"2 images for {'captions': 1}"):
        draw_image_grid([GREY] * 2, captions=['a'])
    with pytest.raises(ValueError, match='0 images'):
        draw_image_grid([])
