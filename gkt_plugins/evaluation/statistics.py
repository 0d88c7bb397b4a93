"""Intervals for what is reported: shares of right answers, and ratios of times taken side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

__all__ = ["Estimate", "mean_estimate", "median_estimate", "ratio_estimate", "share_estimate"]

CONFIDENCE = 0.95


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
    pairs = np.column_stack([np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)])
    if len(pairs) < 2:
        raise ValueError(f"an interval needs at least 2 items, got {len(pairs)}")
    draws = np.random.default_rng(seed).integers(0, len(pairs), size=(4000, len(pairs)))
    sums = pairs[draws].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    total = pairs.sum(axis=0)
    return Estimate(float(total[0] / total[1]), float(low), float(high), len(pairs))


def _bootstrap(values: Sequence[float], statistic: object, seed: int, resamples: int) -> Estimate:
    data = np.asarray(values, dtype=float)
    if data.size < 2:
        raise ValueError(f"an interval needs at least 2 values, got {data.size}")
    assert callable(statistic)
    draws = np.random.default_rng(seed).integers(0, data.size, size=(resamples, data.size))
    replicates = statistic(data[draws], axis=1)
    low, high = np.quantile(replicates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(statistic(data)), float(low), float(high), int(data.size))
