"""What guidance cannot serve (tools, structured output, log-probabilities, …) goes to the student's engine untouched.

It is accounted for like any other call, and the answer says that it was not guided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from gkt_plugins.contracts import Call, Usage, UsageRecord
from gkt_plugins.errors import EngineError
from gkt_plugins.gateway.turns import Turn, send_json
from gkt_plugins.guidance.estimates import estimate_usage
from gkt_plugins.guidance.events import CallKey
from gkt_plugins.guidance.exchange import as_engine_error
from gkt_plugins.guidance.timings import CallTiming
from gkt_plugins.openai_wire.errors import InvalidRequest
from gkt_plugins.openai_wire.provenance import Provenance
from gkt_plugins.openai_wire.streams import DONE, event
from gkt_plugins.openai_wire.usage import read_usage

__all__ = ["forward_answer", "refuse_unserved"]


def refuse_unserved(turn: Turn) -> None:
    """:raises InvalidRequest: the student's engine cannot be asked for what the request asks for."""
    if turn.served.forwarder is None:
        names = ", ".join(sorted(turn.asked.features))
        raise InvalidRequest(
            f"the pipeline {turn.served.name!r} cannot serve {names}, because its student's engine "
            f"{turn.served.parts.student.name!r} takes text only; leave it out, or use a pipeline whose student is an "
            "OpenAI-compatible endpoint",
            code="unsupported_feature",
        )


async def forward_answer(turn: Turn) -> None:
    """Answer ``turn`` with what the student's engine says.

    :raises EngineError: it failed; ``turn.begun`` tells whether some of the answer is out.
    :raises BackendError: the ledger cannot be written.
    """
    assert turn.served.forwarder is not None
    turn.forwarded = True
    call = _ForwardedCall(turn)
    await call.open()
    chunks = turn.served.forwarder.forward(turn.asked.route, _body(turn))
    last: dict[str, Any] | None = None
    try:
        try:
            async for chunk in chunks:
                call.hear(chunk)
                shown = _shown(turn, chunk)
                if shown is None:
                    continue
                if last is not None:
                    await _pass_on(turn, last)
                last = shown
                if turn.asked.stream and not _is_last(shown):
                    await _pass_on(turn, shown)
                    last = None
        finally:
            if aclose := getattr(chunks, "aclose", None):
                await aclose()
        if not call.answered:
            raise EngineError(f"the engine {turn.served.parts.student.name!r} gave no answer to a forwarded request")
    except asyncio.CancelledError:
        await call.close("cancelled")
        raise
    except Exception as exc:
        await call.close("failed")
        raise as_engine_error(turn.served.parts.student, exc) from exc
    await call.close("final")
    await _end(turn, last or {})


class _ForwardedCall:
    """The one call of a forwarded request, on record."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._engine = turn.served.parts.student
        self._record = UsageRecord(
            request_id=turn.admission.requests[0].request_id,
            call=0,
            role="student",
            attempt=0,
            engine=self._engine.name,
            model=self._engine.model,
            status="open",
            started_at=time.time(),
            pipeline=turn.served.name,
        )
        self._timing = CallTiming(time.perf_counter())
        self._usage: Usage | None = None
        self._texts: list[str] = []
        self.answered = False
        """Something came."""

    async def open(self) -> None:
        await self._turn.state.opened.accounts.opened(self._record)
        self._timing.started = time.perf_counter()
        self._turn.timings[CallKey("student", 0)] = self._timing

    def hear(self, chunk: Mapping[str, Any]) -> None:
        """Take note of what a chunk, or the whole response, tells of usage."""
        self.answered = True
        if self._timing.first_text is None:
            self._timing.first_text = time.perf_counter()
        self._usage = read_usage(chunk.get("usage")) or self._usage
        for choice in chunk.get("choices") or ():
            said = choice.get("delta") or choice.get("message") or choice
            text = said.get("content") or said.get("text")
            if isinstance(text, str):
                self._texts.append(text)

    async def close(self, status: Literal["final", "failed", "cancelled"]) -> None:
        ended = self._timing.ended = time.perf_counter()
        usage = self._usage
        if usage is None or usage.completion_tokens is None:
            asked = Call(self._turn.asked.requests[0].prompt)
            usage = estimate_usage(asked, "".join(self._texts))
        usage = replace(usage, seconds=ended - self._timing.started)
        closed = replace(self._record, status=status, usage=usage)
        self._turn.records.append(await self._turn.state.opened.accounts.closed(closed))


def _body(turn: Turn) -> Mapping[str, Any]:
    """The client's own, asking for usage where that can be had."""
    asked = turn.asked
    if not asked.stream or not turn.served.parts.student.capabilities.stream_usage:
        return asked.body
    return {**asked.body, "stream_options": {**(asked.body.get("stream_options") or {}), "include_usage": True}}


def _shown(turn: Turn, chunk: Mapping[str, Any]) -> dict[str, Any] | None:
    """The chunk as the client gets it; None where it has nothing that was asked for."""
    shown = {**chunk, "model": turn.asked.model}
    if turn.asked.stream and not turn.asked.include_usage and "usage" in shown:
        del shown["usage"]
        if not shown.get("choices"):
            return None
    return shown


def _is_last(chunk: Mapping[str, Any]) -> bool:
    """Whether nothing but usage may follow; such a chunk waits until the call is on record."""
    choices = chunk.get("choices") or ()
    return not choices or any(choice.get("finish_reason") for choice in choices)


async def _pass_on(turn: Turn, chunk: Mapping[str, Any]) -> None:
    if not turn.begun:
        await turn.begin_stream()
    await turn.write(event(chunk))


async def _end(turn: Turn, last: dict[str, Any]) -> None:
    """What was held back, with the ``gkt`` object."""
    told = _provenance(turn)
    last["gkt"] = told.as_json()
    if not turn.asked.stream:
        turn.begun = True
        await send_json(turn.send, 200, last, turn.headers(told))
        return
    if not turn.begun:
        await turn.begin_stream()
    await turn.write(event(last) + DONE, more=False)


def _provenance(turn: Turn) -> Provenance:
    names = ", ".join(sorted(turn.asked.features))
    [record] = turn.records
    return Provenance(
        guidance_tokens=0,
        teacher=turn.served.teacher,
        student=turn.served.student,
        way="forwarded",
        degraded=turn.admission.degraded,
        notes=(f"guidance off: the request asks for {names}, which text from two models cannot give",),
        cost_nano=record.cost_nano,
        currency=record.currency,
        overhead_ms=turn.all_timings().own_s(time.perf_counter()) * 1000,
    )
