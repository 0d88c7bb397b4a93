"""Calls and requests as plain JSON, for whoever counts elsewhere. Unknown is null; money is an exact decimal string."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import IO, Any

from gkt_plugins.accounting.money import format_nano, nanoseconds
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import UsageRecord

__all__ = ["as_json", "request_as_json", "write_jsonl"]


def as_json(record: UsageRecord) -> dict[str, Any]:
    """One record: the fields of the contract, the start as an ISO time in UTC, the duration in whole nanoseconds."""
    usage = record.usage
    return {
        "request_id": record.request_id,
        "call": record.call,
        "role": record.role,
        "attempt": record.attempt,
        "pipeline": record.pipeline,
        "engine": record.engine,
        "model": record.model,
        "status": record.status,
        "started_at": datetime.fromtimestamp(record.started_at, UTC).isoformat(timespec="microseconds"),
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "drafted_tokens": usage.drafted_tokens,
        "accepted_tokens": usage.accepted_tokens,
        "duration_ns": None if usage.seconds is None else nanoseconds(usage.seconds),
        "estimated": usage.estimated,
        "currency": None if record.cost_nano is None else record.currency,
        "cost": None if record.cost_nano is None else format_nano(record.cost_nano),
        "cost_nano": record.cost_nano,
        "price_source": record.price_source,
    }


def request_as_json(record: RequestRecord) -> dict[str, Any]:
    """One request: the fields of the record, the start as an ISO time in UTC."""
    started = datetime.fromtimestamp(record.started_at, UTC).isoformat(timespec="microseconds")
    return asdict(record) | {"started_at": started}


def write_jsonl(records: Iterable[UsageRecord | RequestRecord], out: IO[str]) -> int:
    """Write one line a record; returns how many."""
    lines = 0
    for record in records:
        line = request_as_json(record) if isinstance(record, RequestRecord) else as_json(record)
        out.write(json.dumps(line, ensure_ascii=False) + "\n")
        lines += 1
    return lines
