"""A request that guidance cannot serve (tools, structured output, …), asked of the student's engine untouched: each
attempt on record, timed, and told to its breaker; and what the answer says of itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from gkt_plugins.contracts import Call, Role, Usage, UsageRecord
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.estimates import estimate_usage
from gkt_plugins.guidance.events import CallKey, Request
from gkt_plugins.guidance.exchange import Parts
from gkt_plugins.guidance.timings import CallTiming, Timings
from gkt_plugins.openai_wire.errors import InvalidRequest
from gkt_plugins.openai_wire.provenance import Provenance
from gkt_plugins.openai_wire.requests import Asked
from gkt_plugins.openai_wire.usage import read_drafts, read_usage

__all__ = ["ForwardedCall", "forwarded_provenance", "unserved"]


def unserved(asked: Asked, parts: Parts) -> InvalidRequest:
    """Why the student's engine, which is no :class:`~gkt_plugins.contracts.Forwarder`, cannot be asked."""
    names = ", ".join(sorted(asked.features))
    return InvalidRequest(
        f"the pipeline {parts.name!r} cannot serve {names}, because its student's engine {parts.student.name!r} takes "
        "text only; leave it out, or use a pipeline whose student is an OpenAI-compatible endpoint",
        code="unsupported_feature",
    )


class ForwardedCall:
    """One attempt, from its opening to its end."""

    def __init__(
        self,
        parts: Parts,
        request: Request,
        attempt: int,
        *,
        records: list[UsageRecord],
        timings: Timings | None = None,
        role: Role = "student",
    ) -> None:
        """``records`` and ``timings`` gain this call's, when it is over and when it begins. ``role``: what the engine
        is on record as."""
        self._parts = parts
        self._request = request
        self._records = records
        engine = parts.student
        self._breaker = parts.attempts.breaker(engine.name)
        self._record = UsageRecord(
            request_id=request.request_id,
            call=0,
            role=role,
            attempt=attempt,
            engine=engine.name,
            model=engine.model,
            status="open",
            started_at=time.time(),
            pipeline=parts.name,
        )
        self._timings = timings
        self._timing = CallTiming(0.0)
        self._usage: Usage | None = None
        self._drafts = (0, 0)
        self._texts: list[str] = []
        self.answered = False
        """Something came."""
        self.complete = False
        """A choice has come to its end."""

    async def open(self) -> None:
        """Put it on record; to be awaited before it goes out.

        :raises EngineError: its engine is being left alone.
        :raises BackendError: the ledger cannot be written.
        """
        if refusal := self._parts.attempts.refusal(self._record.engine):
            raise refusal
        try:
            if self._parts.accounts is not None:
                await self._parts.accounts.opened(self._record)
        except BaseException:
            self._breaker.dropped()
            raise
        self._timing.started = time.perf_counter()
        if self._timings is not None:
            self._timings[CallKey("student", self._record.attempt)] = self._timing

    def hear(self, chunk: Mapping[str, Any]) -> None:
        """Take note of what a chunk, or the whole response, tells of usage."""
        if not self.answered:
            self.answered = True
            self._breaker.answering()
        self._usage = read_usage(chunk.get("usage")) or self._usage
        self._drafts = max(self._drafts, read_drafts(chunk))
        for choice in chunk.get("choices") or ():
            self.complete = self.complete or bool(choice.get("finish_reason"))
            said = choice.get("delta") or choice.get("message") or choice
            text = said.get("content") or said.get("text")
            if isinstance(text, str):
                self._texts.append(text)

    async def close(self, status: Literal["final", "failed", "cancelled"], error: EngineError | None = None) -> None:
        """Put its end on record; to be awaited before the last of the answer goes out.

        :raises BackendError: the ledger cannot be written.
        """
        ended = self._timing.ended = time.perf_counter()
        if status == "final":
            self._breaker.succeeded()
        elif error is not None and error.retryable:
            self._breaker.failed()
        else:
            self._breaker.dropped()
        usage = self._usage
        if usage is None or usage.completion_tokens is None:
            usage = estimate_usage(Call(self._request.prompt), "".join(self._texts), error)
        drafted, accepted = self._drafts
        seconds = ended - self._timing.started
        usage = replace(usage, drafted_tokens=drafted, accepted_tokens=accepted, seconds=seconds)
        closed = replace(self._record, status=status, usage=usage)
        accounts = self._parts.accounts
        self._records.append(closed if accounts is None else await accounts.closed(closed))


def forwarded_provenance(
    asked: Asked,
    parts: Parts,
    records: Sequence[UsageRecord],
    *,
    degraded: bool = False,
    overhead_s: float | None = None,
) -> Provenance:
    """What the answer says of itself. ``records``: of every attempt, at least one. ``degraded``: by a budget."""
    names = ", ".join(sorted(asked.features))
    costs = [record.cost_nano for record in records]
    known = [cost for cost in costs if cost is not None]
    return Provenance(
        guidance_tokens=0,
        teacher=None if parts.teacher is None else parts.teacher.model,
        student=parts.student.model,
        way="forwarded",
        degraded=degraded,
        notes=(f"guidance off: the request asks for {names}, which text from two models cannot give",),
        cost_nano=sum(known) if len(known) == len(costs) else None,
        currency=records[-1].currency,
        overhead_ms=None if overhead_s is None else overhead_s * 1000,
    )
