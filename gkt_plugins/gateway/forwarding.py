"""What guidance cannot serve (tools, structured output, log-probabilities, …) goes to the student's engine untouched.

It is accounted for like any other call, and the answer says that it was not guided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from gkt_plugins.errors import EngineError
from gkt_plugins.gateway.turns import Turn
from gkt_plugins.guidance.exchange import as_engine_error
from gkt_plugins.openai_wire.forwarded import ForwardedCall, forwarded_provenance, unserved
from gkt_plugins.openai_wire.streams import DONE, event

__all__ = ["forward_answer", "refuse_unserved"]


def refuse_unserved(turn: Turn) -> None:
    """:raises InvalidRequest: the student's engine cannot be asked for what the request asks for."""
    if turn.served.forwarder is None:
        raise unserved(turn.asked, turn.served.parts)


async def forward_answer(turn: Turn) -> None:
    """Answer ``turn`` with what the student's engine says. It is asked again while nothing of an answer came.

    :raises EngineError: it failed; ``turn.begun`` tells whether some of the answer is out.
    :raises BackendError: the ledger cannot be written.
    """
    turn.forwarded = True
    attempts, engine = turn.served.parts.attempts, turn.served.parts.student
    attempt = 0
    while True:
        request = turn.admission.requests[0]
        call = ForwardedCall(turn.served.parts, request, attempt, records=turn.records, timings=turn.timings)
        try:
            last = await _attempt(turn, call)
        except EngineError as exc:
            wait_s = None if call.answered else attempts.wait_s(engine.name, exc, attempt)
            if wait_s is None:
                raise
            await attempts.sleep(wait_s)
            attempt += 1
        else:
            await _end(turn, last)
            return


async def _attempt(turn: Turn, call: ForwardedCall) -> dict[str, Any]:
    """Pass a stream on, all but its end. Returns that, or the whole response: it waits until the call is on record."""
    assert turn.served.forwarder is not None
    await call.open()
    held: dict[str, Any] | None = None
    try:
        chunks = turn.served.forwarder.forward(turn.asked.route, _body(turn))
        try:
            async for chunk in chunks:
                call.hear(chunk)
                shown = _shown(turn, chunk)
                if shown is None:
                    continue
                if held is not None:
                    await _pass_on(turn, held)
                held = shown
                if turn.asked.stream and not _is_last(shown):
                    await _pass_on(turn, shown)
                    held = None
        finally:
            if aclose := getattr(chunks, "aclose", None):
                await aclose()
        if not call.complete:
            raise EngineError(
                f"the engine {turn.served.parts.student.name!r} ended a forwarded request without a finish_reason"
            )
    except asyncio.CancelledError:
        await call.close("cancelled")
        raise
    except Exception as exc:  # noqa: BLE001 - an engine is someone else's code
        error = as_engine_error(turn.served.parts.student, exc)
        await call.close("failed", error)
        raise error  # noqa: B904 - it has its cause already, or is itself what was raised
    await call.close("final")
    return held or {}


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
    overhead_s = turn.all_timings().own_s(time.perf_counter())
    told = forwarded_provenance(
        turn.asked, turn.served.parts, turn.records, degraded=turn.admission.degraded, overhead_s=overhead_s
    )
    last["gkt"] = told.as_json()
    if not turn.asked.stream:
        await turn.answer(last, told)
        return
    if not turn.begun:
        await turn.begin_stream()
    await turn.write(event(last) + DONE, more=False)
