"""What the same requests would have cost from the teacher alone, added up by the database.

The rule is :class:`~gkt_plugins.accounting.counterfactual.TeacherAlone`'s: the same requests are left out for the same
reasons, and the price is applied by the same function. Costs are linear in tokens, so that tokens can be added first;
they are then rounded once a sum instead of once a request. One teacher token per student token is assumed.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, exists, func, or_, select
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import Subquery

from gkt_plugins.accounting.prices import cost_nano
from gkt_plugins.accounting.schema import RECORDS
from gkt_plugins.contracts import AHEAD, Price, PriceSource, Usage
from gkt_plugins.gateway.dashboard._queries import Slices, Span, in_span, slice_of
from gkt_plugins.gateway.dashboard._slices import Alone, Slice

__all__ = ["read_comparison"]

_log = logging.getLogger(__name__)


def read_comparison(connection: Connection, span: Span, slices: Slices, prices: PriceSource) -> None:
    """Add the comparison to ``slices``; a request counts where its first teacher call began."""
    bounds = span.parameters()
    known = {row.model: _price(prices, row.model) for row in connection.execute(_teachers(), bounds)}
    limits = frozenset(
        (model, price.max_prompt_tokens)
        for model, price in known.items()
        if price is not None and price.max_prompt_tokens is not None
    )
    for row in connection.execute(_guided(limits), bounds):
        _fold(slices[int(row.slice), row.pipeline], row, known.get(row.teacher))
    for row in connection.execute(_unguided(), bounds):
        slices[int(row.slice), row.pipeline].not_compared["no teacher call"] += row.requests


def _price(prices: PriceSource, model: str) -> Price | None:
    try:
        return prices.price(model)
    except Exception:  # noqa: BLE001 - a price source may be someone else's code; what it cannot tell is unknown
        _log.exception("the price of %r could not be told; what it alone would have cost is unknown", model)
        return None


def _fold(into: Slice, row: Row[Any], price: Price | None) -> None:
    usage = Usage(
        prompt_tokens=int(row.prompt),
        cached_tokens=None if row.cached_unknown else int(row.cached),
        completion_tokens=int(row.written),
        estimated=True,
    )
    reason, estimate = None, None
    if row.unfinished:
        reason = "not finished"
    elif row.teacher != row.other_teacher:
        reason = "several teachers"
    elif price is None or price.output_nano is None:
        reason = "no price per token known for the teacher"
    elif row.cost_unknown:
        reason = "cost unknown"
    elif {row.currency, row.other_currency} != {price.currency}:
        reason = "several currencies"
    elif row.tokens_unknown or (estimate := cost_nano(usage, replace(price, max_prompt_tokens=None))) is None:
        reason = "tokens unknown"
    if reason is not None:
        into.not_compared[reason] += row.requests
        return
    ahead = row.pipeline.endswith(AHEAD)  # spent for answers that are counted when they are given
    into.alone.setdefault((row.teacher, row.currency), Alone()).__iadd__(
        Alone(0 if ahead else row.requests, int(row.actual_nano), 0 if ahead else estimate or 0)
    )


@cache
def _teachers() -> Select[Any]:
    r = RECORDS.c
    # a request's later attempts and calls may begin after the span, by another model only where it was configured anew
    return select(r.model).where(in_span(r.started_at), r.role == "teacher").distinct()


@lru_cache(maxsize=16)
def _guided(limits: frozenset[tuple[str, int]]) -> Select[Any]:
    """Guided requests by slice, pipeline and everything that decides whether they can be compared.

    ``limits``: (model, longest prompt in tokens that its price holds for).
    """
    request = _by_request(limits)
    c = request.c
    traits = [c.slice, c.pipeline, c.teacher, c.other_teacher, c.currency, c.other_currency]
    flags = [
        (column > 0).label(column.key) for column in (c.unfinished, c.cost_unknown, c.tokens_unknown, c.cached_unknown)
    ]
    choices = case((and_(c.teachers == 1, c.students > 1), c.students), else_=1)
    return select(
        *traits,
        *flags,
        func.count().label("requests"),
        func.sum(c.actual_nano).label("actual_nano"),
        func.sum(c.prompt).label("prompt"),
        func.sum(c.cached).label("cached"),
        # choices that share one guidance would each have begun with it
        func.sum(c.guidance * choices + c.completion).label("written"),
    ).group_by(*traits, *(flag.element for flag in flags))


def _by_request(limits: frozenset[tuple[str, int]]) -> Subquery:
    """One row a guided request: sums over its calls; a call that was tried again counts as its last attempt."""
    first, call, later = aliased(RECORDS, name="first"), aliased(RECORDS, name="call"), aliased(RECORDS, name="later")
    f, c = first.c, call.c
    last = later.c.request_id.is_(None)
    teacher, student = and_(last, c.role == "teacher"), and_(last, c.role == "student")
    either = or_(teacher, student)
    broken = or_(
        *(c.prompt_tokens.is_(None), c.prompt_tokens < 0, c.cached_tokens < 0, c.cached_tokens > c.prompt_tokens),
        *(c.completion_tokens.is_(None), c.completion_tokens < 0),
        *(and_(c.model == model, c.prompt_tokens > longest) for model, longest in sorted(limits)),
    )
    return (
        select(
            slice_of(f.started_at).label("slice"),
            f.pipeline,
            _count(and_(either, c.status != "final")).label("unfinished"),
            func.min(case((teacher, c.model))).label("teacher"),
            func.max(case((teacher, c.model))).label("other_teacher"),
            _count(c.cost_nano.is_(None)).label("cost_unknown"),
            func.min(c.currency).label("currency"),
            func.max(c.currency).label("other_currency"),
            _count(teacher).label("teachers"),
            _count(student).label("students"),
            func.sum(c.cost_nano).label("actual_nano"),
            _sum(teacher, c.prompt_tokens).label("prompt"),
            _sum(teacher, c.cached_tokens).label("cached"),
            _count(and_(teacher, c.cached_tokens.is_(None))).label("cached_unknown"),
            _sum(teacher, c.completion_tokens).label("guidance"),
            _sum(student, c.completion_tokens).label("completion"),
            _count(or_(and_(teacher, broken), and_(student, c.completion_tokens.is_(None)))).label("tokens_unknown"),
        )
        .select_from(first)
        .join(call, call.c.request_id == f.request_id)
        .outerjoin(
            later,
            and_(
                later.c.request_id == c.request_id,
                later.c.call == c.call,
                later.c.role == c.role,
                later.c.attempt == c.attempt + 1,
            ),
        )
        .where(in_span(f.started_at), f.role == "teacher", f.call == 0, f.attempt == 0)
        .group_by(f.request_id, f.started_at, f.pipeline)
        .subquery("request")
    )


@cache
def _unguided() -> Select[Any]:
    r, teacher = RECORDS.c, aliased(RECORDS, name="teacher")
    guided = exists().where(
        teacher.c.request_id == r.request_id,
        teacher.c.call == 0,
        teacher.c.role == "teacher",
        teacher.c.attempt == 0,
    )
    return (
        select(slice_of(r.started_at).label("slice"), r.pipeline, func.count().label("requests"))
        .where(in_span(r.started_at), r.role == "student", r.call == 0, r.attempt == 0, ~guided)
        .group_by("slice", r.pipeline)
    )


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


def _sum(condition: ColumnElement[bool], amount: ColumnElement[int | None]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, amount))), 0)
