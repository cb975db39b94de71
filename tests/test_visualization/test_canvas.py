"""Tests of rendering and saving figures."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mergemix_mm.visualization import figure_to_image, save_image


def test_figure_becomes_an_rgb_array_of_its_size():
    image = figure_to_image(Figure(figsize=(2, 1), dpi=50, facecolor=(1, 0, 0)))
    assert image.shape == (50, 100, 3) and image.dtype == np.uint8
    assert (image == [255, 0, 0]).all()


def test_file_holds_the_image_and_nothing_is_left_beside_it(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = save_image(image, tmp_path / 'deep' / 'figure.png')
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    assert list(path.parent.iterdir()) == [path]


def test_failed_write_keeps_the_file_that_was_there(tmp_path):
    path = save_image(np.zeros((2, 2, 3), np.uint8), tmp_path / 'figure.png')
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_image(np.zeros((2, 2, 7), np.float64), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
