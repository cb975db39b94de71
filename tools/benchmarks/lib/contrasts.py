"""Statistics of studies with paired seeds: contrasts that are named beforehand, intervals, and ranks.

Runs of one seed share data, first weights and order, so all intervals are those of differences within a seed. Intervals
of t cover the spread over seeds, for the test images as they are. The bootstrap draws seeds and test images at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass
class Interval:
    """A mean with its interval.

    Args:
        mean (float): The mean.
        low (float): The lower end of the interval.
        high (float): The upper end.
        p (float): The two-sided p-value that the mean is 0; NaN if none was calculated.
    """

    mean: float
    low: float
    high: float
    p: float = float('nan')

    @property
    def ends(self) -> str:
        """The ends, as in a table."""
        return f'{self.low:+.2f} ... {self.high:+.2f}'


def half_width(deviation: float, seeds: int) -> float:
    """Half the width of the paired t interval over `seeds` >= 2 runs whose differences have this deviation."""
    return float(stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * deviation / seeds**0.5)


def paired_interval(differences: Sequence[float]) -> Interval:
    """The t interval and the p-value of the mean of paired differences, one for each of at least two seeds."""
    values = np.asarray(differences, dtype=float)
    mean, half = float(values.mean()), half_width(float(values.std(ddof=1)), len(values))
    # A deviation of 0 makes t infinite, or undefined if the mean is 0 as well.
    p = float(stats.ttest_1samp(values, 0).pvalue) if values.std() else float(mean == 0)
    return Interval(mean, mean - half, mean + half, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that Holm's method adjusts for their number (https://www.jstor.org/stable/4615733), in the same order.

    The i-th smallest of m is multiplied by m - i + 1; none is below a smaller one's, and none above 1.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for done, i in enumerate(np.argsort(p_values)):
        largest = max(largest, min((len(p_values) - done) * p_values[i], 1.0))
        adjusted[i] = largest
    return adjusted


def contrast(values: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """A weighted sum of arms, e.g. ``{'a': 1, 'b': -1}``: values [...] of each arm -> [...]."""
    return sum(weight * np.asarray(values[arm]) for arm, weight in weights.items())


def bootstrap_means(correct: np.ndarray, tested: np.ndarray, replicates: int = 2000, seed: int = 0) -> np.ndarray:
    """Accuracies of all arms after drawing seeds and images anew, each with replacement and independently.

    An image keeps its weight in all seeds and arms, so that what is easy or hard about it is drawn once (the pigeonhole
    bootstrap, https://arxiv.org/abs/0712.1111).

    Args:
        correct (np.ndarray): [arms, seeds, images] bool. What is not tested is ignored.
        tested (np.ndarray): [seeds, images] bool, the images that each seed tests.
        replicates (int): How often is drawn. Defaults to 2000.
        seed (int): Of the draws. Defaults to 0.

    Returns:
        np.ndarray: [replicates, arms] in [0, 1], the mean over seeds of the accuracy of each seed.
    """
    rng = np.random.default_rng(seed)
    arms, seeds, images = correct.shape
    weights = rng.multinomial(images, np.full(images, 1 / images), replicates).astype(float)
    right = (weights @ (correct & tested).reshape(arms * seeds, images).T).reshape(replicates, arms, seeds)
    accuracy = right / np.maximum(weights @ tested.T, 1)[:, None]
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), replicates)
    return (accuracy * drawn[:, None]).sum(axis=2) / seeds


def percentile_interval(values: np.ndarray, mean: float) -> Interval:
    """The interval that holds 95% of bootstrapped values [replicates], around the mean of the sample."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


def rank_intervals(means: np.ndarray) -> list[tuple[int, int]]:
    """The ranks (1 is the highest mean) that hold 95% of the replicates: means [replicates, arms] -> one for each arm.

    Equal means share the best of their ranks.
    """
    ranks = 1 + (means[:, None, :] > means[:, :, None]).sum(axis=2)
    # Whole ranks: no interpolation between two of them.
    low = np.quantile(ranks, (1 - LEVEL) / 2, axis=0, method='lower')
    high = np.quantile(ranks, (1 + LEVEL) / 2, axis=0, method='higher')
    return [(int(a), int(b)) for a, b in zip(low, high, strict=True)]
