"""Asks the ledger for slices: the database adds up, outside Python's lock, and a few hundred rows come back.

Each statement is bounded by time on an indexed column. Requests count in the slice in which they arrived, calls in the
slice in which they began.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Float,
    Row,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    null,
    select,
    union_all,
)

from gkt_plugins.accounting.schema import RECORDS, REQUESTS
from gkt_plugins.gateway.dashboard._seconds import step_of
from gkt_plugins.gateway.dashboard._slices import PARTS, Slice
from gkt_plugins.gateway.dashboard._sql import whole

__all__ = ["Slices", "Span", "in_span", "read_usage", "slice_of"]

Slices: TypeAlias = defaultdict[tuple[int, str], Slice]
"""(number of the slice, pipeline) → its sums. Slice i holds what began in [i × width, (i + 1) × width)."""


@dataclass(frozen=True, slots=True)
class Span:
    """Whole slices, ``first`` to ``last``, both included; the parameters of every statement here."""

    first: int
    last: int
    width_s: int

    def parameters(self) -> dict[str, int]:
        since, until = self.first * self.width_s, (self.last + 1) * self.width_s
        return {"first": self.first, "since": since, "until": until, "width_s": self.width_s}


_FIRST, _SINCE, _UNTIL, _WIDTH_S = (
    bindparam("first", type_=BigInteger),
    bindparam("since", type_=Float),
    bindparam("until", type_=Float),
    bindparam("width_s", type_=Float),
)


def in_span(started_at: ColumnElement[float]) -> ColumnElement[bool]:
    """SQL: whether that moment, in seconds since the epoch, lies in the span."""
    return and_(started_at >= _SINCE, started_at < _UNTIL)


def slice_of(started_at: ColumnElement[float]) -> ColumnElement[int]:
    """SQL: the number of its slice."""
    return _FIRST + whole(
        (started_at - _SINCE) / _WIDTH_S
    )  # from the beginning of the span: no large number is divided


def read_usage(connection: Connection, span: Span, slices: Slices) -> None:
    """Add everything but the comparison with the teacher alone to ``slices``."""
    for statement, fold in _statements():
        for row in connection.execute(statement, span.parameters()):
            fold(slices[int(row[0]), row[1]], row)


@cache
def _statements() -> list[tuple[Any, Callable[[Slice, Row[Any]], None]]]:
    """Built once: building them takes longer than a small ledger takes to answer."""
    return [
        (_calls(), _fold_call),
        (_requests(), _fold_requests),
        (_guidance(), _fold_guidance),
        (_seconds(), _fold_seconds),
    ]


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


def _calls() -> Select[Any]:
    r = RECORDS.c
    why = case(
        (r.cost_nano.is_not(None), null()),
        (r.price_source.is_(None), "price unknown"),
        else_="tokens unknown",
    )
    return (
        select(
            slice_of(r.started_at).label("slice"),
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
        .where(in_span(r.started_at))
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


def _requests() -> Select[Any]:
    r = REQUESTS.c
    timed = and_(r.total_s.is_not(None), r.overhead_s.is_not(None))
    return (
        select(
            slice_of(r.started_at).label("slice"),
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
        .where(in_span(r.started_at))
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


def _guidance() -> Select[Any]:
    r = REQUESTS.c
    return (
        select(slice_of(r.started_at).label("slice"), r.pipeline, r.guidance_tokens, func.count().label("requests"))
        .where(in_span(r.started_at), r.status == "ok", r.guidance_tokens > 0)
        .group_by("slice", r.pipeline, r.guidance_tokens)
    )


def _fold_guidance(into: Slice, row: Row[Any]) -> None:
    into.guidance_tokens[row.guidance_tokens] += row.requests


def _seconds() -> Any:
    r = REQUESTS.c
    return union_all(
        *(
            select(
                slice_of(r.started_at).label("slice"),
                r.pipeline,
                literal_column(f"'{part}'").label("part"),
                step_of(r[f"{part}_s"]).label("step"),
                func.count().label("requests"),
            )
            .where(in_span(r.started_at), r.status == "ok", r[f"{part}_s"].is_not(None))
            .group_by("slice", r.pipeline, "step")
            for part in PARTS
        )
    )


def _fold_seconds(into: Slice, row: Row[Any]) -> None:
    into.seconds[row.part][int(row.step)] += row.requests
