"""What became of a line: a row of the answers, or of the errors."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gkt_plugins.batch.files import to_line
from gkt_plugins.batch.lines import BatchLine
from gkt_plugins.contracts import UsageRecord
from gkt_plugins.openai_wire.errors import error_body

__all__ = ["Outcome", "answered", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line, done with."""

    number: int
    custom_id: str | None
    row: bytes
    """As the file gets it, with its end."""
    error: str = ""
    """Why there is no answer; empty where there is one."""
    retryable: bool = False
    """The same line may be answered later."""
    guided: bool = False
    degraded: bool = False
    cached: bool = False
    records: tuple[UsageRecord, ...] = ()
    """Of its engine calls, as the ledger has them."""

    def after(self, earlier: Outcome) -> Outcome:
        """This outcome, with what an earlier try of the line used."""
        return replace(self, records=earlier.records + self.records)


def answered(line: BatchLine, body: Mapping[str, Any], records: Sequence[UsageRecord]) -> Outcome:
    """``body``: the whole response, with its ``gkt`` object."""
    assert line.asked is not None
    gkt = body["gkt"]
    return Outcome(
        line.number,
        line.custom_id,
        _row(line, {"status_code": 200, "request_id": line.asked.request_id, "body": body}),
        guided=gkt["guidance_tokens"] > 0,
        degraded=gkt["degraded"],
        cached=gkt["cached"],
        records=tuple(records),
    )


def failed(line: BatchLine, error: Exception, records: Sequence[UsageRecord] = ()) -> Outcome:
    """A line that never became a request has an ``error``, with its number; any other a ``response`` that says why."""
    status, body, _ = error_body(error)
    said = body["error"]
    if line.asked is None and line.custom_id is None:
        row = _row(line, None, {"code": said["code"], "message": said["message"], "line": line.number})
    else:
        identity = line.asked.request_id if line.asked else None
        row = _row(line, {"status_code": status, "request_id": identity, "body": body})
    retryable = bool(getattr(error, "retryable", False))
    return Outcome(line.number, line.custom_id, row, said["message"], retryable, records=tuple(records))


def _row(line: BatchLine, response: Mapping[str, Any] | None, error: Mapping[str, Any] | None = None) -> bytes:
    identity = f"batch_req_{uuid.uuid4().hex}"
    return to_line({"id": identity, "custom_id": line.custom_id, "response": response, "error": error})
