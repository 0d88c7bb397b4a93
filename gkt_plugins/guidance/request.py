"""Driver for one request: streams from the engines, and yields the answer while it is written."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

from gkt_plugins.contracts import Call, FinishReason, Usage
from gkt_plugins.errors import BackendError, EngineError
from gkt_plugins.guidance.cleanup import to_its_end
from gkt_plugins.guidance.estimates import estimate_usage
from gkt_plugins.guidance.events import (
    Action,
    CallEnd,
    CallFailed,
    CallKey,
    CallText,
    CancelCall,
    Emit,
    Event,
    FailChoice,
    FailRequest,
    Finish,
    Request,
    StartCall,
)
from gkt_plugins.guidance.exchange import Exchange, Parts, as_engine_error, generate

__all__ = ["Piece", "run_exchange", "run_request"]

Piece: TypeAlias = Emit | Finish | FailChoice
"""What a client sees: text of a choice, its end, or its failure."""


def run_request(request: Request, parts: Parts, *, whole: bool = False) -> AsyncGenerator[Piece, None]:
    """Answer ``request`` in pieces. Closing the iterator cancels every call and puts what they used on record.

    ``whole``: nobody reads along, so the engines are asked for whole answers, which costs less than streams.

    :raises GktError: the request cannot be answered at all; no piece came before.
    """
    return run_exchange(Exchange(request, parts), parts, whole=whole)


async def run_exchange(exchange: Exchange, parts: Parts, *, whole: bool = False) -> AsyncGenerator[Piece, None]:
    """:func:`run_request` for a caller who wants the whole answer too: ``exchange.answer``, afterwards."""
    calls = _Calls(exchange, parts, whole)
    try:
        actions: list[Action] = exchange.begin()
        while True:
            for action in actions:
                if isinstance(action, Emit):  # nearly all of them
                    yield action
                elif isinstance(action, StartCall):
                    calls.start(action)
                elif isinstance(action, CancelCall):
                    calls.cancel(action.key)
                elif isinstance(action, FailRequest):
                    raise action.error
                elif isinstance(action, Finish | FailChoice):
                    yield action
            if exchange.done:
                return
            event = await calls.next_event()
            actions = exchange.text(event) if isinstance(event, CallText) else await exchange.tell(event)
    finally:
        if not exchange.done:  # otherwise every call has ended, and is on record
            await to_its_end(calls.stop())


class _Calls:
    """The calls of one request, each on its own task, and the events that they leave for the one who reads."""

    def __init__(self, exchange: Exchange, parts: Parts, whole: bool) -> None:
        self._exchange = exchange
        self._parts = parts
        self._whole = whole
        self._tasks: dict[CallKey, asyncio.Task[None]] = {}
        self._events: deque[Event | Exception] = deque()
        self._arrived = asyncio.Event()

    def start(self, action: StartCall) -> None:
        self._tasks[action.key] = asyncio.create_task(self._run(action.key, action.call))

    def cancel(self, key: CallKey) -> None:
        self._tasks[key].cancel()

    async def next_event(self) -> Event:
        """The next one; text of one call that came meanwhile is one event, so whoever is slow has less to do."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, Exception):
            raise event
        return event

    async def stop(self) -> None:
        """Cancel what still runs and put it on record."""
        self._exchange.leave()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        with suppress(BackendError):  # a ledger that cannot be written has been reported already
            await self._exchange.abandon([event for event in self._events if not isinstance(event, Exception)])

    def _put(self, event: Event | Exception) -> None:
        self._events.append(event)
        self._arrived.set()

    def _put_text(self, key: CallKey, text: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, CallText) and last.key == key:
            self._events[-1] = CallText(key, last.text + text)
        else:
            self._put(CallText(key, text))

    async def _run(self, key: CallKey, call: Call) -> None:
        """The whole life of a call: from the cache, or from its engine in one attempt or several."""
        exchange = self._exchange
        try:
            if known := await exchange.given(key, call):
                for event in known:
                    self._put(event)
                return
            while True:
                refused = await exchange.open(key)
                if refused is not None:
                    self._put(refused)
                    return
                text, end = await (self._generate(key, call) if self._whole else self._stream(key, call))
                wait_s = exchange.over(call, text, end)
                if wait_s is None:
                    self._put(end)
                    return
                await self._parts.attempts.sleep(wait_s)
        except Exception as exc:  # noqa: BLE001 - whatever it is, whoever reads must not wait for ever
            self._put(exc)

    async def _stream(self, key: CallKey, call: Call) -> tuple[str, CallEnd | CallFailed]:
        """All text that came, and how it ended."""
        engine = self._parts.engine(key)
        texts: list[str] = []
        reason: FinishReason | None = None
        usage: Usage | None = None
        notes: tuple[str, ...] = ()
        started = time.perf_counter()
        deltas = engine.stream(call)
        try:
            async for delta in deltas:
                if delta.text:
                    if not texts:
                        self._exchange.came(key)
                    texts.append(delta.text)
                    self._put_text(key, delta.text)
                if delta.finish_reason is not None:
                    reason = delta.finish_reason
                if delta.usage is not None:
                    usage = delta.usage
                if delta.notes:
                    notes += delta.notes
        except asyncio.CancelledError:
            text = "".join(texts)
            return text, CallEnd(key, "cancelled", _timed(usage or estimate_usage(call, text), started), notes)
        except Exception as exc:  # noqa: BLE001 - an engine is someone else's code, and the request must go on
            text, error = "".join(texts), as_engine_error(engine, exc)
            return text, CallFailed(key, error, _timed(usage or estimate_usage(call, text, error), started))
        finally:
            if aclose := getattr(deltas, "aclose", None):
                await aclose()
        text = "".join(texts)
        usage = _timed(usage or estimate_usage(call, text), started)
        if reason is None:
            error = EngineError(f"the engine {engine.name!r} ended its stream without a reason")
            return text, CallFailed(key, error, usage)
        return text, CallEnd(key, reason, usage, notes)

    async def _generate(self, key: CallKey, call: Call) -> tuple[str, CallEnd | CallFailed]:
        started = time.perf_counter()
        try:
            [result] = await generate(self._parts.engine(key), [call])
        except asyncio.CancelledError:
            return "", CallEnd(key, "cancelled", _timed(estimate_usage(call, ""), started))
        if isinstance(result, EngineError):
            return "", CallFailed(key, result, _timed(estimate_usage(call, "", result), started))
        if result.text:
            self._exchange.came(key)
            self._put_text(key, result.text)
        return result.text, CallEnd(key, result.finish_reason, result.usage, result.notes)


def _timed(usage: Usage, started: float) -> Usage:
    """Seconds that the engine did not measure are those around the call."""
    return usage if usage.seconds is not None else replace(usage, seconds=time.perf_counter() - started)
