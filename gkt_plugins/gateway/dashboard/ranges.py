"""A stretch of time cut into at most some 120 slices, so that what a page asks for is bounded however long it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gkt_plugins.openai_wire.errors import InvalidRequest

__all__ = ["Range", "parse_range"]

MOST_SLICES = 122
"""120, and the two at the ends that are in the range in part."""

_DAY_S = 86_400
_WIDTHS_S = (60, 300, 900, 3600, 7200, 21_600, _DAY_S)
_DEFAULT_S = _DAY_S
_END_OF_CALENDAR = 2.0**32


@dataclass(frozen=True, slots=True)
class Range:
    """Slices ``first`` to ``last``, both included; slice i is [i × ``width_s``, (i + 1) × ``width_s``), in UTC."""

    first: int
    last: int
    width_s: int

    @classmethod
    def covering(cls, since: float, until: float) -> Range:
        """The slices that hold every moment in [``since``, ``until``), seconds since the epoch."""
        length = until - since
        width = next((w for w in _WIDTHS_S if length <= 120 * w), None)
        if width is None:
            width = _DAY_S * math.ceil(length / (120 * _DAY_S))
        return cls(int(since // width), math.ceil(until / width) - 1, width)

    @property
    def since(self) -> int:
        return self.first * self.width_s

    @property
    def until(self) -> int:
        return (self.last + 1) * self.width_s


def parse_range(query: Mapping[str, str], now: float) -> Range:
    """``since`` and ``until`` of a query: seconds since the epoch, or, negative, seconds before now.

    Absent, ``since`` is a day before ``until``, and ``until`` is now.

    :raises InvalidRequest: not a number, or nothing lies between them.
    """
    until = _moment(query, "until", now, default=now)
    since = _moment(query, "since", now, default=until - _DEFAULT_S)
    if not since < until:
        raise InvalidRequest(
            f"since must be before until, got {query.get('since')!r} and {query.get('until', 'now')!r}; "
            "give seconds since the epoch, or seconds before now as a negative number",
            param="since",
        )
    return Range.covering(since, until)


def _moment(query: Mapping[str, str], name: str, now: float, *, default: float) -> float:
    text = query.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    moment = now + number if number < 0 else number
    if not 0 <= moment < _END_OF_CALENDAR:
        raise InvalidRequest(
            f"{name} must be seconds since the epoch, or seconds before now as a negative number, got {text[:40]!r}",
            param=name,
        )
    return moment
