"""Statistics of studies on numbers that are worked out by hand."""

import math

import numpy as np
import pytest


@pytest.fixture
def contrasts(load):
    return load('lib.contrasts')


def test_the_paired_interval_is_that_of_students_table(contrasts):
    # Differences 1, 2, 3: deviation 1, standard error 1 / sqrt(3), and 4.303 is the quantile of 2 degrees of freedom.
    interval = contrasts.paired_interval([1, 2, 3])
    assert interval.mean == 2 and interval.high - 2 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    assert interval.low == pytest.approx(4 - interval.high)
    # With 2 degrees of freedom, p = 1 - t / sqrt(t^2 + 2), and t is 2 sqrt(3).
    assert interval.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert interval.ends == '-0.48 ... +4.48'
    assert (contrasts.paired_interval([0, 0]).p, contrasts.paired_interval([2, 2]).p) == (1, 0)


@pytest.mark.parametrize(('seeds', 'expected'), [(5, 4.2), (8, 2.8)])
def test_the_half_width_of_a_study_is_known_before(contrasts, seeds, expected):
    assert contrasts.half_width(3.4, seeds) == pytest.approx(expected, abs=0.05)


def test_holm_multiplies_by_the_number_of_hypotheses_that_are_left(contrasts):
    assert contrasts.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert contrasts.holm([0.5, 0.6, 0.001]) == pytest.approx([1, 1, 0.003])
    assert contrasts.holm([]) == []


def test_a_contrast_weighs_arms_seed_by_seed(contrasts):
    values = dict(a=np.array([1.0, 5.0]), b=np.array([2.0, 3.0]), c=np.array([9.0, 9.0]))
    assert contrasts.contrast(values, dict(a=1, b=-1)).tolist() == [-1, 2]


def test_the_bootstrap_draws_seeds_and_images(contrasts):
    rng = np.random.default_rng(0)
    tested = np.ones((4, 500), dtype=bool)
    tested[:, 400:] = False
    correct = rng.random((1, 4, 500)) < np.array([0.4, 0.5, 0.6, 0.7])[None, :, None]
    # The second arm is the first one, the third is right on the first 40 images that the first misses.
    better = correct[0].copy()
    for row in better:
        row[np.flatnonzero(~row)[:40]] = True
    drawn = contrasts.bootstrap_means(np.stack([correct[0], correct[0], better]), tested, replicates=4000)
    means = correct[0][:, :400].mean(axis=1)
    assert drawn.shape == (4000, 3) and np.array_equal(drawn[:, 0], drawn[:, 1])
    assert drawn[:, 0].mean() == pytest.approx(means.mean(), abs=0.005)
    # The spread of means over seeds drawn with replacement, and that over images, which is smaller.
    assert drawn[:, 0].std() == pytest.approx(math.hypot(means.std() / 2, 0.5 / math.sqrt(1600)), rel=0.1)
    gain = drawn[:, 2] - drawn[:, 0]
    interval = contrasts.percentile_interval(gain, 0.1)
    assert interval.mean == 0.1 and 0 < interval.low < gain.mean() == pytest.approx(0.1, abs=0.005)
    assert np.isclose((gain <= interval.high).mean(), 0.975, atol=1e-3)


def test_ranks_cover_what_the_replicates_say(contrasts):
    # The first arm wins 90 of 100 times, the other two are equal whenever they are behind it.
    means = np.array([[3.0, 1.0, 1.0]] * 90 + [[0.0, 2.0, 1.0]] * 10)
    assert contrasts.rank_intervals(means) == [(1, 3), (1, 2), (2, 2)]
