"""Tests of the figure of rewards."""

import numpy as np
import pytest

from mergemix_mm.visualization import draw_reward_curves
from mergemix_mm.visualization.curves import CHOSEN_COLOUR, REJECTED_COLOUR


def scalars(**changes):
    margin = np.linspace(0, 0.5, 6)
    return (
        dict(step=range(10, 70, 10), reward_chosen=margin - 1, reward_rejected=[-1.0] * 6, reward_margin=margin)
        | changes
    )


def height_of(image, colour):
    """Mean height of the pixels of a colour in the left half, below the legend; from 0 (bottom) to 1."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    found = (np.abs(image.astype(int) - rgb).max(-1) < 12)[:, : image.shape[1] // 2]
    found[: image.shape[0] // 5, : image.shape[1] // 4] = False
    return 1 - np.argwhere(found)[:, 0].mean() / image.shape[0]


def test_the_larger_reward_is_drawn_higher():
    image = draw_reward_curves(scalars())
    assert image.dtype == np.uint8 and image.shape == (374, 836, 3)
    assert height_of(image, CHOSEN_COLOUR) > height_of(image, REJECTED_COLOUR) + 0.1


def test_the_margin_asked_for_is_one_minus_the_ratio():
    plain = draw_reward_curves(scalars())
    mixed = [draw_reward_curves(scalars(ratio_mean=[ratio] * 6)) for ratio in (0.8, 0.9)]
    assert len({image.tobytes() for image in (plain, *mixed)}) == 3
    # Only the right panel knows of it.
    half = plain.shape[1] // 2 - 40
    assert np.array_equal(mixed[0][:, :half], mixed[1][:, :half])


def test_a_run_without_rewards_is_told_what_logs_them():
    with pytest.raises(ValueError, match=r'have no reward_chosen, reward_rejected, reward_margin; .*SimPOHead'):
        draw_reward_curves(dict(step=[1], loss=[1.0]))
    with pytest.raises(ValueError, match=r"lengths differ: .*'reward_margin': 5"):
        draw_reward_curves(scalars(reward_margin=[0.0] * 5))
