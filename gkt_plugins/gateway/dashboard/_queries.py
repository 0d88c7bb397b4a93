"""Asks the ledger for slices: the database adds up, outside Python's lock, and a few hundred rows come back.

Each statement is bounded by time on an indexed column. Requests count in the slice in which they arrived, calls in the
slice in which they began.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, func, literal, null, select, union_all

from gkt_plugins.accounting.schema import RECORDS, REQUESTS
from gkt_plugins.gateway.dashboard._seconds import step_of
from gkt_plugins.gateway.dashboard._slices import PARTS, Slice
from gkt_plugins.gateway.dashboard._sql import whole

__all__ = ["Slices", "Span", "read_usage"]

Slices: TypeAlias = defaultdict[tuple[int, str], Slice]
"""(number of the slice, pipeline) → its sums. Slice i holds what began in [i × width, (i + 1) × width)."""


class Span:
    """Whole slices, in seconds since the epoch: [``since``, ``until``)."""

    def __init__(self, first: int, last: int, width_s: int) -> None:
        """``first``, ``last``: numbers of slices, both included. ``width_s``: seconds in each."""
        self.since, self.until = first * width_s, (last + 1) * width_s
        self._width_s = width_s

    def holds(self, started_at: ColumnElement[float]) -> ColumnElement[bool]:
        return and_(started_at >= self.since, started_at < self.until)

    def slice_of(self, started_at: ColumnElement[float]) -> ColumnElement[int]:
        # measured from the beginning of the span: exact, because no large number is divided
        return self.since // self._width_s + whole((started_at - self.since) / self._width_s)


def read_usage(connection: Connection, span: Span, slices: Slices) -> None:
    """Add everything but the comparison with the teacher alone to ``slices``."""
    for statement, fold in _statements(span):
        for row in connection.execute(statement):
            fold(slices[int(row[0]), row[1]], row)


def _statements(span: Span) -> Iterator[tuple[Any, Callable[[Slice, Row[Any]], None]]]:
    yield _calls(span), _fold_call
    yield _requests(span), _fold_requests
    yield _guidance(span), _fold_guidance
    yield _seconds(span), _fold_seconds


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


def _calls(span: Span) -> Select[Any]:
    r = RECORDS.c
    why = case(
        (r.cost_nano.is_not(None), null()),
        (r.price_source.is_(None), "price unknown"),
        else_="tokens unknown",
    )
    return (
        select(
            span.slice_of(r.started_at).label("slice"),
            r.pipeline,
            r.role,
            r.model,
            r.currency,
            (r.status == "open").label("open"),
            why.label("why"),
            func.count().label("calls"),
            func.sum(r.cost_nano).label("cost_nano"),
            _count(r.estimated).label("estimated"),
            func.sum(r.drafted_tokens).label("drafted"),
            func.sum(r.accepted_tokens).label("accepted"),
        )
        .where(span.holds(r.started_at))
        .group_by("slice", r.pipeline, r.role, r.model, r.currency, "open", "why")
    )


def _fold_call(into: Slice, row: Row[Any]) -> None:
    into.calls += row.calls
    into.estimated_calls += int(row.estimated)
    into.drafted += int(row.drafted)
    into.accepted += int(row.accepted)
    if row.cost_nano is not None:
        into.spent_nano[row.currency, row.role] += int(row.cost_nano)
    elif row.open:
        into.open_calls += row.calls
    else:
        into.unknown_cost[row.model, row.why] += row.calls


def _requests(span: Span) -> Select[Any]:
    r = REQUESTS.c
    timed = and_(r.total_s.is_not(None), r.overhead_s.is_not(None))
    return (
        select(
            span.slice_of(r.started_at).label("slice"),
            r.pipeline,
            r.status,
            r.error,
            r.route,
            func.count().label("requests"),
            _count(r.degraded).label("degraded"),
            _count(r.cached).label("cached"),
            _count(r.retries > 0).label("retried"),
            _count(r.streamed).label("streamed"),
            _count(timed).label("timed"),
            *(func.sum(case((timed, r[f"{part}_s"]))).label(part) for part in PARTS[1:]),
        )
        .where(span.holds(r.started_at))
        .group_by("slice", r.pipeline, r.status, r.error, r.route)
    )


def _fold_requests(into: Slice, row: Row[Any]) -> None:
    into.statuses[row.status] += row.requests
    into.degraded += int(row.degraded)
    into.cached += int(row.cached)
    into.retried += int(row.retried)
    into.streamed += int(row.streamed)
    if row.status in ("error", "refused"):
        into.errors[row.status, row.error] += row.requests
    if row.status != "ok":
        return
    into.routes[row.route] += row.requests
    into.split_requests += int(row.timed)
    for part in PARTS[1:]:
        into.split_s[part] = into.split_s.get(part, 0.0) + float(row._mapping[part] or 0.0)


def _guidance(span: Span) -> Select[Any]:
    r = REQUESTS.c
    return (
        select(
            span.slice_of(r.started_at).label("slice"), r.pipeline, r.guidance_tokens, func.count().label("requests")
        )
        .where(span.holds(r.started_at), r.status == "ok", r.guidance_tokens > 0)
        .group_by("slice", r.pipeline, r.guidance_tokens)
    )


def _fold_guidance(into: Slice, row: Row[Any]) -> None:
    into.guidance_tokens[row.guidance_tokens] += row.requests


def _seconds(span: Span) -> Any:
    r = REQUESTS.c
    return union_all(
        *(
            select(
                span.slice_of(r.started_at).label("slice"),
                r.pipeline,
                literal(part).label("part"),
                step_of(r[f"{part}_s"]).label("step"),
                func.count().label("requests"),
            )
            .where(span.holds(r.started_at), r.status == "ok", r[f"{part}_s"].is_not(None))
            .group_by("slice", r.pipeline, "step")
            for part in PARTS
        )
    )


def _fold_seconds(into: Slice, row: Row[Any]) -> None:
    into.seconds[row.part][int(row.step)] += row.requests
