"""What the requests and calls of one pipeline in one stretch of time add up to. Slices can be added; nothing is lost.

Money is integer nano-units by currency. What is unknown is counted beside what is known, never as zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias, get_args

import numpy as np

from gkt_plugins.gateway.dashboard._seconds import NUM_STEPS, Counts

__all__ = ["PARTS", "Alone", "Part", "Slice", "added"]

Part: TypeAlias = Literal["first_token", "total", "teacher", "student", "overhead"]
"""What of a request was timed; the last three make up ``total``."""

PARTS: tuple[Part, ...] = get_args(Part)


def _zero_counts() -> dict[Part, Counts]:
    return {part: np.zeros(NUM_STEPS, dtype=np.int64) for part in PARTS}


@dataclass(slots=True)
class Alone:
    """Requests that can be compared with their teacher alone; money in one currency."""

    requests: int = 0
    actual_nano: int = 0
    estimate_nano: int = 0

    def __iadd__(self, other: Alone) -> Alone:
        self.requests += other.requests
        self.actual_nano += other.actual_nano
        self.estimate_nano += other.estimate_nano
        return self


@dataclass(slots=True)
class Slice:
    """Sums of one pipeline, or of several that were added."""

    calls: int = 0
    open_calls: int = 0
    """Not over yet, so their cost is not known yet either."""
    estimated_calls: int = 0
    unknown_cost: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(model, why) → calls that are over and whose cost is unknown."""
    spent_nano: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(currency, role) → what the calls of known cost add up to."""
    drafted: int = 0
    accepted: int = 0
    alone: dict[tuple[str, str], Alone] = field(default_factory=dict)
    """(teacher's model, currency) → the comparison."""
    not_compared: Counter[str] = field(default_factory=Counter)
    """Why → requests."""
    statuses: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    """Of answered requests."""
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(status, code) → requests that failed or were refused."""
    degraded: int = 0
    cached: int = 0
    retried: int = 0
    streamed: int = 0
    guidance_tokens: Counter[int] = field(default_factory=Counter)
    """Length of the guidance, at least 1 → answered requests."""
    seconds: dict[Part, Counts] = field(default_factory=_zero_counts)
    """Of answered requests."""
    split_requests: int = 0
    """Answered requests of which the total and the overhead are known."""
    split_s: dict[Part, float] = field(default_factory=dict)
    """What their total, teacher, student and overhead add up to, in seconds."""

    def __iadd__(self, other: Slice) -> Slice:
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for key, alone in other.alone.items():
            self.alone.setdefault(key, Alone()).__iadd__(alone)
        for part, counts in other.seconds.items():
            self.seconds[part] += counts
        for part, seconds in other.split_s.items():
            self.split_s[part] = self.split_s.get(part, 0.0) + seconds
        return self

    @property
    def requests(self) -> int:
        return self.statuses.total()

    @property
    def answered(self) -> int:
        return self.statuses["ok"]

    @property
    def guided(self) -> int:
        """Answered requests that got guidance."""
        return self.guidance_tokens.total()


_ADDED = [each.name for each in fields(Slice) if each.type == "int"]
_COUNTERS = [each.name for each in fields(Slice) if str(each.type).startswith("Counter")]


def added(slices: Iterable[Slice]) -> Slice:
    """The sum of ``slices``, as a new one."""
    total = Slice()
    for each in slices:
        total += each
    return total
