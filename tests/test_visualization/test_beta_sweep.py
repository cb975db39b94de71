"""Tests of the figure of scores over beta."""

import numpy as np
import pytest

from mergemix_mm.visualization import draw_beta_sweep

BETAS = (0, 0.5, 1)


def height_of_black(image):
    """Mean height of thick black pixels, those of the mean, between the axes: from 0 (bottom) to 1."""
    black = (image.max(-1) < 30)[:, 80:-40]
    thick = black[1:] & black[:-1]  # Text and ticks are thin, or outside.
    thick[-60:] = False
    return 1 - np.argwhere(thick)[:, 0].mean() / image.shape[0]


def test_the_mean_lies_where_the_scores_put_it():
    falling, rising = (90, 60, 10), (10, 60, 90)
    image = draw_beta_sweep(BETAS, dict(real=rising, synthetic=falling))
    assert image.dtype == np.uint8 and image.shape == (418, 704, 3)
    lower = draw_beta_sweep(BETAS, dict(real=rising, synthetic=(90, 10, 10)))
    assert height_of_black(image) > height_of_black(lower) + 0.03


def test_one_score_has_no_mean_and_references_change_the_picture():
    one = dict(real=(10, 60, 90))
    images = [
        draw_beta_sweep(BETAS, one),
        draw_beta_sweep(BETAS, one, dict(both=75)),
        draw_beta_sweep(BETAS, one, dict(both=50)),
    ]
    assert len({image.tobytes() for image in images}) == 3
    assert not (images[0].max(-1) < 30)[20:200, 120:600].any()


def test_scores_must_be_as_many_as_betas():
    with pytest.raises(ValueError, match=r"each of the 3 betas, got {'real': 2}"):
        draw_beta_sweep(BETAS, dict(real=(1, 2)))
    with pytest.raises(ValueError, match='draw_beta_sweep'):
        draw_beta_sweep(BETAS, {})
