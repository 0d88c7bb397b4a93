"""Driver for many requests: the teacher in batches, the student beside it, answers as they finish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from gkt_plugins.contracts import Call, Completion, Engine
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.answers import Answer
from gkt_plugins.guidance.events import (
    Action,
    CallEnd,
    CallFailed,
    CallKey,
    CallText,
    Request,
    StartCall,
)
from gkt_plugins.guidance.exchange import Exchange, Parts, as_engine_error

__all__ = ["BatchOptions", "run_batch"]


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How many calls an engine gets together. Engines that do not batch get as many calls at a time, one by one."""

    teacher_batch: int = 16
    student_batch: int = 16
    in_flight: int = 64
    """Requests begun and not yet answered, at most; bounds memory for an endless input."""

    def __post_init__(self) -> None:
        for name in ("teacher_batch", "student_batch", "in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


async def run_batch(
    requests: Iterable[Request], parts: Parts, options: BatchOptions | None = None
) -> AsyncGenerator[Answer, None]:
    """Answer every request, and yield each answer as soon as it is complete, in any order.

    A request that cannot be answered yields an :class:`Answer` that says why; the others are not touched. Closing the
    iterator cancels what is under way and puts it on record.

    :raises BackendError: the ledger cannot be written; nothing goes out that would not be accounted for.
    """
    options = options or BatchOptions()
    run = _Run(parts, options.in_flight)
    tasks = [asyncio.create_task(run.feed(requests))]
    for engine, waiting, size in (
        (parts.teacher, run.teacher_calls, options.teacher_batch),
        (parts.student, run.student_calls, options.student_batch),
    ):
        if engine is not None:
            together, workers = (size, 1) if engine.capabilities.batch else (1, size)
            tasks += [asyncio.create_task(run.work(engine, waiting, together)) for _ in range(workers)]
    try:
        while (answer := await run.next_answer()) is not None:
            yield answer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A call that waits for its engine."""

    exchange: Exchange
    key: CallKey
    call: Call


_Calls: TypeAlias = "asyncio.Queue[_Waiting]"


class _Run:
    """The queues between the feeder, the workers of each engine, and whoever reads the answers."""

    def __init__(self, parts: Parts, in_flight: int) -> None:
        self.teacher_calls: _Calls = asyncio.Queue()
        self.student_calls: _Calls = asyncio.Queue()
        self._parts = parts
        self._answers: asyncio.Queue[Answer | Exception | None] = asyncio.Queue()
        self._slots = asyncio.Semaphore(in_flight)
        self._under_way = 0
        self._fed = False

    async def next_answer(self) -> Answer | None:
        """The next one to finish; None when there are no more. Raises what broke the run."""
        while self._under_way or not self._fed:
            item = await self._answers.get()
            if isinstance(item, Exception):
                raise item
            if item is not None:
                self._under_way -= 1
                self._slots.release()
                return item
        return None

    async def feed(self, requests: Iterable[Request]) -> None:
        """Begin requests, as many as have a slot."""
        try:
            for request in requests:
                await self._slots.acquire()
                exchange = Exchange(request, self._parts)
                self._under_way += 1
                self._carry_out(exchange, exchange.begin())
        except Exception as exc:  # noqa: BLE001 - it belongs to the reader of the answers
            self._answers.put_nowait(exc)
        self._fed = True
        self._answers.put_nowait(None)

    async def work(self, engine: Engine, waiting: _Calls, together: int) -> None:
        """Answer calls of one engine for ever: all that wait, up to ``together`` at a time."""
        while True:
            batch = [await waiting.get()]
            while len(batch) < together and not waiting.empty():
                batch.append(waiting.get_nowait())
            try:
                await self._answer(engine, batch)
            except Exception as exc:  # noqa: BLE001 - a ledger that cannot be written ends the run, for its reader
                self._answers.put_nowait(exc)

    async def _answer(self, engine: Engine, batch: Sequence[_Waiting]) -> None:
        try:
            await asyncio.gather(*(one.exchange.open(one.key) for one in batch))
            results = await _generate(engine, [one.call for one in batch])
            await asyncio.gather(*(self._settle(one, result) for one, result in zip(batch, results, strict=True)))
        except asyncio.CancelledError:
            await asyncio.gather(*(one.exchange.abandon() for one in batch), return_exceptions=True)
            raise

    async def _settle(self, one: _Waiting, result: Completion | EngineError) -> None:
        if isinstance(result, EngineError):
            self._carry_out(one.exchange, await one.exchange.tell(CallFailed(one.key, result)))
            return
        if result.text:
            self._carry_out(one.exchange, await one.exchange.tell(CallText(one.key, result.text)))
        end = CallEnd(one.key, result.finish_reason, result.usage, result.notes)
        self._carry_out(one.exchange, await one.exchange.tell(end))

    def _carry_out(self, exchange: Exchange, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, StartCall):
                waiting = self.teacher_calls if action.key.role == "teacher" else self.student_calls
                waiting.put_nowait(_Waiting(exchange, action.key, action.call))
        if exchange.done:
            self._answers.put_nowait(exchange.answer)


async def _generate(engine: Engine, calls: Sequence[Call]) -> Sequence[Completion | EngineError]:
    """One result per call, whatever the engine does."""
    started = time.perf_counter()
    try:
        results = await engine.generate(calls)
    except Exception as exc:  # noqa: BLE001 - an engine is someone else's code, and the other rows must go on
        return [as_engine_error(engine, exc)] * len(calls)
    if len(results) != len(calls):
        error = EngineError(f"the engine {engine.name!r} must give {len(calls)} answers, gave {len(results)}")
        return [error] * len(calls)
    [first, *others] = results
    if not others and isinstance(first, Completion) and first.usage.seconds is None:
        return [replace(first, usage=replace(first.usage, seconds=time.perf_counter() - started))]
    return results
