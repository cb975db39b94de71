"""Tests of the figure of interaction curves."""

import numpy as np
import pytest

from mergemix_mm.visualization import draw_interaction_curves


def rows_of_colour(image, colour, tolerance=12):
    """Mean height of the pixels of a colour, from 0 (bottom) to 1."""
    found = (np.abs(image.astype(int) - colour).max(-1) < tolerance)[:, : image.shape[1] // 2]
    assert found.any()
    return 1 - np.argwhere(found)[:, 0].mean() / image.shape[0]


def test_higher_curves_are_drawn_higher_each_in_its_colour():
    curves = dict(generation=dict(mean=[0.7] * 6), understanding=dict(mean=[0.2] * 6))
    image = draw_interaction_curves(curves)
    assert image.dtype == np.uint8 and image.shape == (418, 704, 3)
    assert rows_of_colour(image, (0xC2, 0x57, 0x1A)) > rows_of_colour(image, (0x3B, 0x6F, 0xB6)) + 0.2


def test_bands_targets_and_chosen_layers_change_the_picture():
    curve = dict(mean=[0.3, 0.5, 0.4])
    images = [
        draw_interaction_curves(dict(model=curve)),
        draw_interaction_curves(dict(model=dict(curve, std=[0.1] * 3))),
        draw_interaction_curves(dict(model=dict(curve, layers=[2, 4, 5]))),
        draw_interaction_curves(dict(model=dict(curve)), dict(model=([0.4] * 3, [0.1] * 3))),
        draw_interaction_curves(dict(model=curve), title='iteration 4'),
    ]
    assert len({image.tobytes() for image in images}) == 5
    assert np.array_equal(images[0], draw_interaction_curves(dict(model=curve)))


def test_targets_are_read_at_the_layers_of_the_curve():
    def draw(target):
        curve = dict(mean=[0.3, 0.5], layers=[1, 3])
        return draw_interaction_curves(dict(model=curve), dict(model=(target, [0.1] * 4)))

    assert np.array_equal(draw([0.2, 0.4, 0.2, 0.4]), draw([0.9, 0.4, 0.9, 0.4]))
    assert not np.array_equal(draw([0.2, 0.4, 0.2, 0.4]), draw([0.2, 0.4, 0.2, 0.8]))


def test_bad_arguments():
    with pytest.raises(ValueError, match='there must be curves'):
        draw_interaction_curves({})
    with pytest.raises(ValueError, match=r"one for each target of \['b'\]"):
        draw_interaction_curves(dict(a=dict(mean=[0.1])), dict(b=([0.1], [0.1])))
