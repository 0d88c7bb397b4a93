"""The ledger's tables. Portable SQLAlchemy Core; counts, times, money and names, and never any text.

What a change here needs: a step in ``migrations/versions`` that turns the old tables into these.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table

__all__ = ["BUDGETS", "KEY", "METADATA", "RECORDS", "REQUESTS", "RESERVATIONS"]

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

BUDGETS = Table(
    "budget_days",
    METADATA,
    Column("scope", String, primary_key=True),
    Column("currency", String, primary_key=True),
    Column("day", String, primary_key=True),
    Column("spent_nano", BigInteger, nullable=False),
    Column("reserved_nano", BigInteger, nullable=False),
)

RESERVATIONS = Table(
    "budget_reservations",
    METADATA,
    Column("reservation_id", String, primary_key=True),
    Column("scope", String, primary_key=True),
    Column("currency", String, nullable=False),
    Column("day", String, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("writer", String, nullable=False),
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
