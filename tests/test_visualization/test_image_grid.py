"""Images in a grid: where boxes lie, and whose they are."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from mergemix_mm.visualization import draw_image_grid, image_grid
from mergemix_mm.visualization.image_grid import PREDICTED_COLOUR, TRUE_COLOUR

GREY = np.full((40, 40, 3), 90, np.uint8)
BOX = (4, 10, 30, 20)


def patches(figure):
    return [[(to_hex(box.get_edgecolor()), *box.get_bbox().extents) for box in axes.patches] for axes in figure.axes]


def test_boxes_are_drawn_at_the_edges_of_their_pixels_each_kind_in_its_colour(monkeypatch):
    monkeypatch.setattr(image_grid, 'figure_to_image', lambda figure: figure)
    figure = draw_image_grid([GREY, GREY], predicted=[[BOX], []], true=[[], [BOX]])
    # Pixel i covers i - 0.5 to i + 0.5.
    assert patches(figure) == [[(PREDICTED_COLOUR, 3.5, 9.5, 29.5, 19.5)], [(TRUE_COLOUR, 3.5, 9.5, 29.5, 19.5)]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['predicted', 'true']
    assert not draw_image_grid([GREY], captions=['a']).legends


def test_rows_and_long_captions_make_the_page_higher():
    pages = [
        draw_image_grid([GREY] * 3, columns=3),
        draw_image_grid([GREY] * 4, columns=3),
        draw_image_grid([GREY] * 3, ['a', 'b', 'a caption that is longer than a line'], columns=3),
        draw_image_grid([GREY] * 3, ['a', 'b', 'word ' * 80], columns=3),
        draw_image_grid([GREY] * 3, ['a', 'b', 'word ' * 8000], columns=3),
    ]
    heights = [page.shape[0] for page in pages]
    assert len({page.shape[1] for page in pages}) == 1
    assert heights[1] == pytest.approx(2 * heights[0], abs=20)
    assert heights[0] < heights[2] < heights[3] == heights[4]


def test_one_entry_per_image():
    with pytest.raises(ValueError, match="2 images for {'captions': 1}"):
        draw_image_grid([GREY] * 2, captions=['a'])
    with pytest.raises(ValueError, match='0 images'):
        draw_image_grid([])
