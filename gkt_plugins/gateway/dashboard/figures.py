"""The figures of any range. What is over is counted once; a refresh reads the last minutes of the ledger only."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gkt_plugins.contracts import PriceSource
from gkt_plugins.errors import BackendError
from gkt_plugins.gateway.dashboard._comparison import read_comparison
from gkt_plugins.gateway.dashboard._queries import Slices, Span, read_usage
from gkt_plugins.gateway.dashboard._shape import shape
from gkt_plugins.gateway.dashboard._slices import Slice
from gkt_plugins.gateway.dashboard.ranges import Range

__all__ = ["Figures"]

_MOST_KEPT = 512
"""Slices; with five pipelines some 30 MB."""


class Figures:
    """Reads one ledger. Blocks while it reads: call it on a thread, one at a time."""

    def __init__(
        self,
        ledger: Engine,
        prices: PriceSource,
        *,
        pipelines: Sequence[str] = (),
        settled_after_s: float = 900.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``ledger``: as ``connect_reader`` gives it. ``prices``: today's, for what the teacher alone would have cost.

        ``pipelines``: those to name even if nothing happened. ``settled_after_s``: a request is over by then, so a
        slice that ended longer ago, without open calls, does not change any more. ``clock``: seconds since the epoch.
        """
        self._ledger = ledger
        self._prices = prices
        self._pipelines = tuple(pipelines)
        self._settled_after_s = settled_after_s
        self._clock = clock
        self._kept: OrderedDict[tuple[int, int], dict[str, Slice]] = OrderedDict()

    def now(self) -> float:
        """Seconds since the epoch, by the same clock."""
        return self._clock()

    def read(self, asked: Range, pipeline: str | None = None) -> dict[str, Any]:
        """What the page shows, as JSON: see ``docs/dashboard.md``. ``pipeline``: of that one alone.

        :raises BackendError: the ledger cannot be read.
        """
        now = self._clock()
        fresh: dict[int, dict[str, Slice]] = {}
        missing = [i for i in range(asked.first, asked.last + 1) if (asked.width_s, i) not in self._kept]
        for first, last in _runs(missing):
            fresh |= self._count(first, last, asked.width_s)
        slices = []
        for number in range(asked.first, asked.last + 1):
            key = (asked.width_s, number)
            if key in self._kept:
                self._kept.move_to_end(key)
                slices.append(self._kept[key])
                continue
            slices.append(fresh[number])
            over = (number + 1) * asked.width_s + self._settled_after_s <= now
            if over and not any(each.open_calls for each in fresh[number].values()):
                self._kept[key] = fresh[number]
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return shape(asked, slices, pipeline, self._pipelines, now)

    def _count(self, first: int, last: int, width_s: int) -> dict[int, dict[str, Slice]]:
        counted: Slices = defaultdict(Slice)
        span = Span(first, last, width_s)
        try:
            with self._ledger.connect() as connection:
                read_usage(connection, span, counted)
                read_comparison(connection, span, counted, self._prices)
        except SQLAlchemyError as exc:
            cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
            raise BackendError(f"the ledger could not be read: {cause}; see that its database is there") from exc
        finally:
            self._ledger.dispose()  # opened again in a moment: nothing stays open between two looks at the page
        slices: dict[int, dict[str, Slice]] = {number: {} for number in range(first, last + 1)}
        for (number, pipeline), each in counted.items():
            slices[number][pipeline] = each
        return slices


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each stretch of neighbours in ascending ``numbers``."""
    first = previous = None
    for number in numbers:
        if first is None or previous is None:
            first = number
        elif number != previous + 1:
            yield first, previous
            first = number
        previous = number
    if first is not None and previous is not None:
        yield first, previous
