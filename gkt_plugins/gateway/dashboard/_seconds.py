"""Durations counted in steps: any number of requests fits a bounded space, and percentiles are within 2.5 %.

From 1 ms to 10,000 s there are 70 steps a decade, below 1 ms one a hundredth of it. Counts of different times add up,
so that an hour which is over is counted once.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Float, Integer, case, literal_column

from gkt_plugins.gateway.dashboard._sql import whole

__all__ = ["NUM_STEPS", "PERCENTILES", "Counts", "percentiles", "step_of", "value_of"]

Counts: TypeAlias = npt.NDArray[np.int64]
"""[NUM_STEPS] how many durations fell into each step."""

PERCENTILES = (50, 95, 99)

_SCALES: list[tuple[float, float, float, int]] = [(0.0, 1e-3, 1e5, 0)]
"""(from, to, steps per second, number of the first step); durations in seconds."""
_NUMBER = 100
for _decade in range(-3, 4):
    for _begin, _end, _steps in ((1, 2, 20), (2, 5, 30), (5, 10, 20)):  # steps of 5, 5 and 5 % of where each begins
        _unit = 10.0**_decade
        _SCALES.append((_begin * _unit, _end * _unit, _steps / ((_end - _begin) * _unit), _NUMBER))
        _NUMBER += _steps

NUM_STEPS = _NUMBER + 1
"""The last one counts everything longer."""


def step_of(seconds: ColumnElement[float]) -> ColumnElement[int]:
    """SQL for the number of the step that a duration falls into."""
    steps = [
        (seconds < _number(end), _number(first) + whole((seconds - _number(begin)) * _number(rate)))
        for begin, end, rate, first in _SCALES
    ]
    return case(*steps, else_=_number(_NUMBER))


def _number(constant: float) -> ColumnElement[Any]:
    """Written out: as parameters they would be hundreds."""
    return literal_column(repr(constant), Float if isinstance(constant, float) else Integer)


def value_of(step: int) -> float:
    """The middle of a step, in seconds."""
    for begin, end, rate, first in reversed(_SCALES):
        if step == _NUMBER:
            return end
        if step >= first:
            return begin + (step - first + 0.5) / rate
    raise ValueError(f"steps are numbered from 0, got {step}")


def percentiles(counts: Counts) -> dict[str, float | None]:
    """``p50``, ``p95`` and ``p99`` by nearest rank, in seconds; None where nothing was counted."""
    below = np.cumsum(counts)
    total = int(below[-1])
    if not total:
        return {f"p{percent}": None for percent in PERCENTILES}
    ranks = {percent: -(-percent * total // 100) for percent in PERCENTILES}
    return {f"p{percent}": value_of(int(np.searchsorted(below, rank))) for percent, rank in ranks.items()}
