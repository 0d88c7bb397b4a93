"""Stop strings over a text that arrives in pieces, whichever model wrote which piece.

An engine sees only its own text; a stop string that begins in the guidance and ends in the student's words is seen
here. The first stop string to be *completed* ends the answer, so how the text was chunked makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopFilter", "find_stop", "held_from"]


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the answer ends: the start of the stop string completed first (the longest of those), or None."""
    ends = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    return min(ends)[1] if ends else None


def held_from(text: str, stops: Sequence[str]) -> int:
    """Start of the longest end of ``text`` that may still become one of ``stops``; ``len(text)`` if there is none."""
    if not stops:
        return len(text)
    first = max(0, len(text) - max(map(len, stops)) + 1)
    if {stop[:1] for stop in stops}.isdisjoint(text[first:]):  # nearly always
        return len(text)
    for start in range(first, len(text)):
        tail = text[start:]
        if any(stop.startswith(tail) for stop in stops):
            return start
    return len(text)


class StopFilter:
    """Lets text pass once it can no longer be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False
        """A stop string was completed; nothing passes any more."""

    def feed(self, text: str) -> str:
        """Take the next piece; return what is certain to be part of the answer."""
        if self.stopped:
            return ""
        text = self._held + text
        stop = find_stop(text, self._stops)
        self.stopped = stop is not None
        certain = held_from(text, self._stops) if stop is None else stop
        self._held = "" if self.stopped else text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """The answer has ended without a stop string: return what was held back."""
        held, self._held = self._held, ""
        return held
