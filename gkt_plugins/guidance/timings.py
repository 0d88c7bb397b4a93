"""When each engine call of a request began, first gave text and ended; what is left of the whole is our own overhead.

All moments are readings of ``time.perf_counter``, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gkt_plugins.guidance.events import CallKey

__all__ = ["CallTiming", "Timings"]


@dataclass(slots=True)
class CallTiming:
    """One call, from its first attempt to the end of its last; waits between attempts are part of it."""

    started: float
    first_text: float | None = None
    ended: float | None = None


class Timings(dict[CallKey, CallTiming]):
    """The calls of one request, and the request around them."""

    def __init__(self, began: float) -> None:
        super().__init__()
        self.began = began
        self.first_text: float | None = None
        """When the first text of the answer was released."""
        self.ended: float | None = None
        """When the answer was complete; None: not yet, or it was given up."""

    @property
    def first_text_s(self) -> float | None:
        """From the beginning to the first released text; None: there was none."""
        return None if self.first_text is None else self.first_text - self.began

    def role_s(self, role: Literal["teacher", "student"], now: float) -> float | None:
        """Seconds in which a call of ``role`` was under way; overlaps count once. None: there was no such call.

        ``now`` stands for an end that is not known yet.
        """
        spans = [timing for key, timing in self.items() if key.role == role]
        return _union(spans, now) if spans else None

    def own_s(self, now: float) -> float:
        """Seconds until ``now`` in which no call was under way: this project's own overhead."""
        return max(0.0, now - self.began - _union(list(self.values()), now))


def _union(spans: list[CallTiming], now: float) -> float:
    total, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.started):
        ended = now if span.ended is None else min(span.ended, now)
        total += max(0.0, ended - max(span.started, reached))
        reached = max(reached, ended)
    return total
