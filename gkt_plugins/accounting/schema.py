"""The ledger's tables. Portable SQLAlchemy Core; counts, times, money and names, and never any text."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, Row, String, Table

from gkt_plugins.accounting.money import NANO, nanoseconds
from gkt_plugins.contracts import Role, Usage, UsageRecord

__all__ = ["KEY", "METADATA", "RECORDS", "REQUESTS", "record_of", "row_of"]

METADATA = MetaData()

RECORDS = Table(
    "usage_records",
    METADATA,
    Column("request_id", String, primary_key=True),
    Column("call", Integer, primary_key=True, autoincrement=False),
    Column("role", String, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("pipeline", String, nullable=False),
    Column("engine", String, nullable=False),
    Column("model", String, nullable=False),
    Column("status", String, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("prompt_tokens", BigInteger),
    Column("cached_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("drafted_tokens", BigInteger, nullable=False),
    Column("accepted_tokens", BigInteger, nullable=False),
    Column("duration_ns", BigInteger),
    Column("estimated", Boolean, nullable=False),
    Column("currency", String, nullable=False),
    Column("cost_nano", BigInteger),
    Column("price_source", String),
    Column("writer", String, nullable=False),
)

REQUESTS = Table(
    "requests",
    METADATA,
    Column("request_id", String, primary_key=True),
    Column("pipeline", String, nullable=False),
    Column("key", String, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("route", String, nullable=False),
    Column("status", String, nullable=False),
    Column("error", String, nullable=False),
    Column("streamed", Boolean, nullable=False),
    Column("choices", Integer, nullable=False),
    Column("guidance_tokens", Integer, nullable=False),
    Column("degraded", Boolean, nullable=False),
    Column("cached", Boolean, nullable=False),
    Column("first_token_s", Float),
    Column("total_s", Float),
    Column("teacher_s", Float),
    Column("student_s", Float),
    Column("overhead_s", Float),
    Column("retries", Integer, nullable=False),
)

KEY = ("request_id", "call", "role", "attempt")

Index("requests_started_at", REQUESTS.c.started_at)
Index("usage_records_started_at", RECORDS.c.started_at)
Index(  # recovery looks for open rows only, however long the ledger grows
    "usage_records_open",
    RECORDS.c.writer,
    sqlite_where=RECORDS.c.status == "open",
    postgresql_where=RECORDS.c.status == "open",
)

_STATUSES = get_args(get_type_hints(UsageRecord)["status"])
_INT64 = range(-(2**63), 2**63)
_END_OF_CALENDAR = 2.0**32
"""Seconds; the year 2106. Anything beyond is a mistake, such as milliseconds."""


def row_of(record: UsageRecord, writer: str) -> dict[str, Any]:
    """The columns of ``record``.

    :raises ValueError: a record that the ledger could not give back as it was.
    """
    usage = record.usage
    if record.status not in _STATUSES or record.role not in get_args(Role):
        raise ValueError(f"a usage record has a role in {get_args(Role)} and a status in {_STATUSES}, got {record!r}")
    if not 0 < record.started_at < _END_OF_CALENDAR:
        raise ValueError(f"a usage record needs started_at, seconds since the epoch, got {record.started_at!r}")
    if usage.seconds is not None and not 0 <= usage.seconds < _END_OF_CALENDAR:
        raise ValueError(f"a usage record's seconds are at least 0, or None for unknown, got {usage.seconds!r}")
    row = {
        "request_id": record.request_id,
        "call": record.call,
        "role": record.role,
        "attempt": record.attempt,
        "pipeline": record.pipeline,
        "engine": record.engine,
        "model": record.model,
        "status": record.status,
        "started_at": float(record.started_at),
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "drafted_tokens": usage.drafted_tokens,
        "accepted_tokens": usage.accepted_tokens,
        "duration_ns": None if usage.seconds is None else nanoseconds(usage.seconds),
        "estimated": usage.estimated,
        "currency": record.currency,
        "cost_nano": record.cost_nano,
        "price_source": record.price_source,
        "writer": writer,
    }
    for name, value in row.items():
        if isinstance(value, int) and value not in _INT64:
            raise ValueError(f"a usage record's {name} must fit 64 bits, got {value}")
        if isinstance(value, str):
            value.encode()  # a lone surrogate fails here, alone, instead of failing a whole commit
    return row


def record_of(row: Row[Any]) -> UsageRecord:
    """The record that :func:`row_of` wrote."""
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
