"""Driver for one request: streams from the engines, and yields the answer while it is written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

from gkt_plugins.contracts import Call, FinishReason, Usage
from gkt_plugins.errors import BackendError, EngineError
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
from gkt_plugins.guidance.exchange import Exchange, Parts, as_engine_error

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
    calls = _Calls(exchange, parts)
    try:
        actions: list[Action] = exchange.begin()
        while True:
            for action in actions:
                if isinstance(action, StartCall):
                    calls.start(action)
                elif isinstance(action, CancelCall):
                    calls.cancel(action.key)
                elif isinstance(action, FailRequest):
                    raise action.error
                elif isinstance(action, Emit | Finish | FailChoice):
                    yield action
            if exchange.done:
                return
            actions = await exchange.tell(await calls.next_event())
    finally:
        await calls.stop()


class _Calls:
    """The streams of one request, each on its own task."""

    def __init__(self, exchange: Exchange, parts: Parts) -> None:
        self._exchange = exchange
        self._parts = parts
        self._tasks: dict[CallKey, asyncio.Task[None]] = {}
        self._events: asyncio.Queue[Event | BackendError] = asyncio.Queue()

    def start(self, action: StartCall) -> None:
        self._tasks[action.key] = asyncio.create_task(self._run(action.key, action.call))

    def cancel(self, key: CallKey) -> None:
        self._tasks[key].cancel()

    async def next_event(self) -> Event:
        event = await self._events.get()
        if isinstance(event, BackendError):
            raise event
        return event

    async def stop(self) -> None:
        """Cancel what still runs and put it on record."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._exchange.done:
            return
        with suppress(BackendError):  # a ledger that cannot be written has been reported already
            while not self._events.empty():
                event = self._events.get_nowait()
                if isinstance(event, CallText | CallEnd | CallFailed):
                    await self._exchange.tell(event)
            await self._exchange.abandon()

    async def _run(self, key: CallKey, call: Call) -> None:
        try:
            await self._exchange.open(key)
        except BackendError as exc:
            self._events.put_nowait(exc)
            return
        self._events.put_nowait(await self._stream(key, call))

    async def _stream(self, key: CallKey, call: Call) -> CallEnd | CallFailed:
        engine = self._parts.engine(key)
        reason: FinishReason | None = None
        usage: Usage | None = None
        notes: tuple[str, ...] = ()
        started = time.perf_counter()
        deltas = engine.stream(call)
        try:
            async for delta in deltas:
                if delta.text:
                    self._events.put_nowait(CallText(key, delta.text))
                reason = delta.finish_reason or reason
                usage = delta.usage or usage
                notes += delta.notes
        except asyncio.CancelledError:
            return CallEnd(key, "cancelled", usage, notes)
        except Exception as exc:  # noqa: BLE001 - an engine is someone else's code, and the request must go on
            return CallFailed(key, as_engine_error(engine, exc), usage)
        finally:
            if aclose := getattr(deltas, "aclose", None):
                await aclose()
        if reason is None:
            return CallFailed(key, EngineError(f"the engine {engine.name!r} ended its stream without a reason"), usage)
        if usage is not None and usage.seconds is None:
            usage = replace(usage, seconds=time.perf_counter() - started)
        return CallEnd(key, reason, usage, notes)
