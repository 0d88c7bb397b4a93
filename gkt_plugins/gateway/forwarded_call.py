"""One attempt to have the student's engine answer a forwarded request: on record, timed, and told to its breaker."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from gkt_plugins.contracts import Call, Usage, UsageRecord
from gkt_plugins.errors import EngineError
from gkt_plugins.gateway.turns import Turn
from gkt_plugins.guidance.estimates import estimate_usage
from gkt_plugins.guidance.events import CallKey
from gkt_plugins.guidance.timings import CallTiming
from gkt_plugins.openai_wire.usage import read_usage

__all__ = ["ForwardedCall"]


class ForwardedCall:
    """The call, from its opening to its end."""

    def __init__(self, turn: Turn, attempt: int) -> None:
        self._turn = turn
        self._attempts = turn.served.parts.attempts
        engine = turn.served.parts.student
        self._breaker = self._attempts.breaker(engine.name)
        self._record = UsageRecord(
            request_id=turn.admission.requests[0].request_id,
            call=0,
            role="student",
            attempt=attempt,
            engine=engine.name,
            model=engine.model,
            status="open",
            started_at=time.time(),
            pipeline=turn.served.name,
        )
        self._began = 0.0
        self._usage: Usage | None = None
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
        if refusal := self._attempts.refusal(self._record.engine):
            raise refusal
        try:
            await self._turn.state.opened.accounts.opened(self._record)
        except BaseException:
            self._breaker.dropped()
            raise
        self._began = time.perf_counter()
        self._turn.timings[CallKey("student", self._record.attempt)] = CallTiming(self._began)

    def hear(self, chunk: Mapping[str, Any]) -> None:
        """Take note of what a chunk, or the whole response, tells of usage."""
        if not self.answered:
            self.answered = True
            self._breaker.answering()
        self._usage = read_usage(chunk.get("usage")) or self._usage
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
        ended = self._turn.timings[CallKey("student", self._record.attempt)].ended = time.perf_counter()
        if status == "final":
            self._breaker.succeeded()
        elif error is not None and error.retryable:
            self._breaker.failed()
        else:
            self._breaker.dropped()
        usage = self._usage
        if usage is None or usage.completion_tokens is None:
            usage = estimate_usage(Call(self._turn.asked.requests[0].prompt), "".join(self._texts), error)
        closed = replace(self._record, status=status, usage=replace(usage, seconds=ended - self._began))
        self._turn.records.append(await self._turn.state.opened.accounts.closed(closed))
