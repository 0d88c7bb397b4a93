"""Quantiles of what was seen in several turns, with intervals that hold how much turns differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gkt_plugins.evaluation.statistics import CONFIDENCE, Estimate

__all__ = ["quantile_estimate", "quantile_of"]

_RESAMPLES = 1000


def quantile_of(turns: Sequence[Sequence[float]], percent: float) -> float:
    """A quantile of all turns together; ``percent`` in [0, 100]."""
    return float(np.percentile(np.concatenate(turns), percent))


def quantile_estimate(
    turns: Sequence[Sequence[float]], percent: float, *, less: Sequence[Sequence[float]] | None = None
) -> Estimate:
    """A quantile, with a percentile bootstrap interval over whole turns: what one turn saw is not independent.

    ``less``: of the same turns on another side; its quantile is subtracted.
    """

    def value(chosen: Sequence[int]) -> float:
        found = quantile_of([turns[turn] for turn in chosen], percent)
        return found if less is None else found - quantile_of([less[turn] for turn in chosen], percent)

    everything = range(len(turns))
    draws = np.random.default_rng(0).integers(0, len(turns), size=(_RESAMPLES, len(turns)))
    low, high = np.quantile([value(draw) for draw in draws], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value(everything), float(low), float(high), sum(map(len, turns)))
