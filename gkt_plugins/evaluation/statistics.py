"""Intervals for what is reported: shares of right answers, and ratios of times taken side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Estimate", "mean_estimate", "median_estimate", "ratio_estimate", "share_estimate", "sums_estimate"]

CONFIDENCE = 0.95

FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, question: float) -> bool:
        """True when the interval lies wholly on one side of ``question``; otherwise the matter is unresolved."""
        return question < self.low or question > self.high


def share_estimate(hits: int, n: int) -> Estimate:
    """Share of successes in [0, 1] with the Wilson score interval.

    :raises ValueError: ``n`` is 0, or ``hits`` is not in [0, n].

    Source: Wilson 1927, J. Am. Stat. Assoc. 22.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"expected 0 <= hits <= n and n >= 1, got hits={hits}, n={n}")
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)), n)


def median_estimate(values: Sequence[float], *, seed: int = 0, resamples: int = 4000) -> Estimate:
    """Median of paired ratios, with a percentile bootstrap interval over the pairs.

    :raises ValueError: fewer than two values.
    """
    return _bootstrap(values, np.median, seed, resamples)


def mean_estimate(values: Sequence[float], *, seed: int = 0, resamples: int = 4000) -> Estimate:
    """Mean, with a percentile bootstrap interval.

    :raises ValueError: fewer than two values.
    """
    return _bootstrap(values, np.mean, seed, resamples)


def ratio_estimate(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> Estimate:
    """Ratio of two sums over the same items, with a percentile bootstrap interval over the items.

    :raises ValueError: fewer than two items, or not the same number of both.
    """
    if len(numerators) != len(denominators):
        raise ValueError(f"expected as many numerators as denominators, got {len(numerators)} and {len(denominators)}")
    return sums_estimate([numerators, denominators], lambda sums: sums[0] / sums[1], seed=seed)


def sums_estimate(columns: Sequence[Sequence[float]], statistic: Callable[[FloatArray], FloatArray], *,
                  seed: int = 0, resamples: int = 4000) -> Estimate:  # fmt: skip
    """A function of several sums over the same items, with a percentile bootstrap interval over the items.

    What is computed from one item stays together, so that two things measured on the same items are compared in pairs.

    :param columns: [k, n] what is added up, for each of the n items.
    :param statistic: [k, …] sums → […].
    :raises ValueError: fewer than two items.
    """
    items = np.asarray(columns, dtype=float)
    n = items.shape[1]
    if n < 2:
        raise ValueError(f"an interval needs at least 2 items, got {n}")
    draws = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
    replicates = statistic(items[:, draws].sum(axis=-1))
    low, high = np.quantile(replicates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(statistic(items.sum(axis=-1))), float(low), float(high), n)


def _bootstrap(values: Sequence[float], statistic: object, seed: int, resamples: int) -> Estimate:
    data = np.asarray(values, dtype=float)
    if data.size < 2:
        raise ValueError(f"an interval needs at least 2 values, got {data.size}")
    assert callable(statistic)
    draws = np.random.default_rng(seed).integers(0, data.size, size=(resamples, data.size))
    replicates = statistic(data[draws], axis=1)
    low, high = np.quantile(replicates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(statistic(data)), float(low), float(high), int(data.size))
