"""Leaves an engine alone that keeps failing, so that requests need not wait for what will not come."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Breaker"]


class Breaker:
    """Counts failures in a row. From ``failures`` on it admits nothing for ``pause_s``, then one call that tries.

    Every admitted call is ended by exactly one of :meth:`succeeded`, :meth:`failed` and :meth:`dropped`.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        """``clock``: seconds, monotonic."""
        self._limit = failures
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._closed_until = 0.0
        self._trying = False

    @property
    def is_open(self) -> bool:
        """The engine is being left alone, or tried by one call."""
        return self._failures >= self._limit

    @property
    def remaining_s(self) -> float:
        """How long it is still left alone; 0: it is not, or a call may try."""
        return max(0.0, self._closed_until - self._clock()) if self.is_open else 0.0

    def admit(self) -> bool:
        """May a call go out?"""
        if not self.is_open:
            return True
        if self._trying or self.remaining_s:
            return False
        self._trying = True
        return True

    def answering(self) -> None:
        """The first text of an admitted call came: enough to let others through, while one failure still counts."""
        if self._trying:
            self._trying = False
            self._failures = self._limit - 1

    def succeeded(self) -> None:
        """An admitted call came to its end."""
        self._failures = 0
        self._trying = False

    def failed(self) -> None:
        """An admitted call failed in a way that may be the engine's fault."""
        self._trying = False
        self._failures += 1
        if self.is_open:
            self._closed_until = self._clock() + self._pause_s

    def dropped(self) -> None:
        """An admitted call was cancelled, or its own request was at fault: nothing is known of the engine."""
        self._trying = False
