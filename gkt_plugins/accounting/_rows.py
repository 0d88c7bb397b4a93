"""Records as rows of the ledger and back. A row is a tuple in the order of its table's columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias, get_args, get_type_hints

from sqlalchemy import Row as Found

from gkt_plugins.accounting.money import NANO, nanoseconds
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import Role, Usage, UsageRecord

__all__ = ["Row", "call_row", "record_of", "request_of", "request_row"]

Row: TypeAlias = tuple[Any, ...]

_ROLES = get_args(Role)
_STATUSES = get_args(get_type_hints(UsageRecord)["status"])
_OUTCOMES = get_args(get_type_hints(RequestRecord)["status"])
_INT64 = range(-(2**63), 2**63)
_INT32 = range(-(2**31), 2**31)
_END_OF_CALENDAR = 2.0**32
"""Seconds; the year 2106. Anything beyond is a mistake, such as milliseconds."""


def call_row(record: UsageRecord, writer: str) -> Row:
    """The row of ``record``.

    :raises ValueError: a record that the ledger could not give back as it was.
    """
    usage = record.usage
    if record.status not in _STATUSES or record.role not in _ROLES:
        raise ValueError(f"a usage record has a role in {_ROLES} and a status in {_STATUSES}, got {record!r}")
    _check_start("usage", record.started_at)
    _check_seconds("usage", (usage.seconds,))
    _check_integers(
        "usage",
        (
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            usage.drafted_tokens,
            usage.accepted_tokens,
            record.cost_nano,
        ),
        _INT64,
    )
    _check_integers("usage", (record.call, record.attempt), _INT32)
    source = record.price_source
    _check_names(
        "usage",
        (record.request_id, record.pipeline, record.engine, record.model, record.currency, source or ""),
    )
    return (
        record.request_id,
        record.call,
        record.role,
        record.attempt,
        record.pipeline,
        record.engine,
        record.model,
        record.status,
        float(record.started_at),
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        usage.drafted_tokens,
        usage.accepted_tokens,
        None if usage.seconds is None else nanoseconds(usage.seconds),
        usage.estimated,
        record.currency,
        record.cost_nano,
        source,
        writer,
    )


def record_of(row: Found[Any]) -> UsageRecord:
    """The record that :func:`call_row` wrote."""
    usage = Usage(
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=row.completion_tokens,
        drafted_tokens=row.drafted_tokens,
        accepted_tokens=row.accepted_tokens,
        seconds=None if row.duration_ns is None else row.duration_ns / NANO,
        estimated=row.estimated,
    )
    return UsageRecord(
        request_id=row.request_id,
        call=row.call,
        role=row.role,
        attempt=row.attempt,
        engine=row.engine,
        model=row.model,
        status=row.status,
        usage=usage,
        currency=row.currency,
        cost_nano=row.cost_nano,
        price_source=row.price_source,
        started_at=row.started_at,
        pipeline=row.pipeline,
    )


def request_row(record: RequestRecord) -> Row:
    """The row of ``record``.

    :raises ValueError: a record that the ledger could not give back as it was.
    """
    if record.status not in _OUTCOMES:
        raise ValueError(f"a request record has a status in {_OUTCOMES}, got {record.status!r}")
    seconds = (record.first_token_s, record.total_s, record.teacher_s, record.student_s, record.overhead_s)
    _check_start("request", record.started_at)
    _check_seconds("request", seconds)
    _check_integers("request", (record.choices, record.guidance_tokens, record.retries), _INT32)
    _check_names("request", (record.request_id, record.pipeline, record.key, record.route, record.error))
    return (
        record.request_id,
        record.pipeline,
        record.key,
        float(record.started_at),
        record.route,
        record.status,
        record.error,
        record.streamed,
        record.choices,
        record.guidance_tokens,
        record.degraded,
        record.cached,
        *seconds,
        record.retries,
    )


def request_of(row: Found[Any]) -> RequestRecord:
    """The record that :func:`request_row` wrote."""
    return RequestRecord(*tuple(row))


def _check_start(kind: str, started_at: float) -> None:
    if not 0 < started_at < _END_OF_CALENDAR:
        raise ValueError(f"a {kind} record needs started_at, seconds since the epoch, got {started_at!r}")


def _check_seconds(kind: str, values: Iterable[float | None]) -> None:
    for value in values:
        if value is not None and not 0 <= value < _END_OF_CALENDAR:
            raise ValueError(f"a {kind} record's seconds are at least 0, or None for unknown, got {value!r}")


def _check_integers(kind: str, values: Iterable[int | None], allowed: range) -> None:
    for value in values:
        if value is not None and not allowed.start <= value < allowed.stop:
            raise ValueError(f"a {kind} record's numbers must fit {allowed.stop.bit_length()} bits, got {value}")


def _check_names(kind: str, names: Iterable[str]) -> None:
    together = "".join(names)
    together.encode()  # a lone surrogate fails here, alone, instead of failing a whole commit
    if "\0" in together:
        raise ValueError(f"a {kind} record's names hold no NUL character, which no database keeps, got {together!r}")
