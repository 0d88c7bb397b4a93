"""Seconds kept as histograms: what any number of requests adds up to in a bounded space, with percentiles within 1 %.

Fifty steps a decade from 1 ms to 10,000 s, hundredths of a millisecond below: a value is known to half a step, which is
at most 1 % of it. Histograms of different times add up, so a past hour is counted once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import ColumnElement, Integer, case
from sqlalchemy import cast as sql_cast

__all__ = ["PERCENTILES", "percentiles", "step_of", "value_of"]

PERCENTILES = (50, 95, 99)

_DECADES = ((1e-3, 1e5), (1e-2, 5e4), (1e-1, 5e3), (1.0, 5e2), (1e1, 5e1), (1e2, 5.0), (1e3, 0.5), (1e4, 0.05))
"""(upper end in seconds, steps per second below it), in order; a step is numbered 1000 × decade + its own number."""
_BEYOND = 1000 * len(_DECADES)
"""The step of everything longer; as if it were 10,000 s."""


def step_of(seconds: ColumnElement[float]) -> ColumnElement[int]:
    """SQL for the step that a duration falls into. Whole numbers, so that both databases agree."""
    # "- 0.5" makes a rounding cast (PostgreSQL) and a truncating one (SQLite) differ by a step at most
    steps = [
        (seconds < end, 1000 * number + sql_cast(seconds * rate, Integer))
        for number, (end, rate) in enumerate(_DECADES)
    ]
    return case(*steps, else_=_BEYOND)


def value_of(step: int) -> float:
    """The middle of a step, in seconds."""
    decade, number = divmod(step, 1000)
    if decade == len(_DECADES):
        return _DECADES[-1][0]
    return (number + 0.5) / _DECADES[decade][1]


def percentiles(counts: Mapping[int, int], wanted: Iterable[int] = PERCENTILES) -> list[float | None]:
    """Nearest-rank percentiles of a histogram (step → how many), in seconds; None where nothing was counted."""
    total = sum(counts.values())
    if not total:
        return [None for _ in wanted]
    found: list[float | None] = []
    steps = sorted(counts)
    for percent in wanted:
        rank = max(1, -(-percent * total // 100))
        seen = 0
        for step in steps:
            seen += counts[step]
            if seen >= rank:
                found.append(value_of(step))
                break
    return found
