"""Driver for many requests: the teacher in batches, the student beside it, answers as they finish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from gkt_plugins.contracts import Call, Completion, Engine
from gkt_plugins.errors import BackendError, EngineError
from gkt_plugins.guidance.answers import Answer
from gkt_plugins.guidance.cleanup import to_its_end
from gkt_plugins.guidance.events import (
    TEACHER,
    Action,
    CallEnd,
    CallFailed,
    CallKey,
    CallText,
    Event,
    Request,
    StartCall,
)
from gkt_plugins.guidance.exchange import Exchange, Parts, generate

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
    requests: Iterable[Request] | AsyncIterable[Request], parts: Parts, options: BatchOptions | None = None
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
        await to_its_end(run.abandon(tasks))


async def _each(requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncGenerator[Request, None]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


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
        self._under_way: set[Exchange] = set()
        self._asides: set[asyncio.Task[None]] = set()
        """What waits beside the workers: for the guidance cache, or for the next attempt."""
        self._fed = False

    async def next_answer(self) -> Answer | None:
        """The next one to finish; None when there are no more. Raises what broke the run."""
        while self._under_way or not self._answers.empty() or not self._fed:
            item = await self._answers.get()
            if isinstance(item, Exception):
                raise item
            if item is not None:
                self._slots.release()
                return item
        return None

    async def feed(self, requests: Iterable[Request] | AsyncIterable[Request]) -> None:
        """Begin requests, as many as have a slot."""
        try:
            async for request in _each(requests):
                await self._slots.acquire()
                exchange = Exchange(request, self._parts)
                self._under_way.add(exchange)
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

    async def abandon(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Nobody reads any more: end the feeder, the workers and what waits beside them, and put what was under way on
        record."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in self._asides:
            task.cancel()
        await asyncio.gather(*self._asides, return_exceptions=True)
        for exchange in self._under_way:
            with suppress(BackendError):  # a ledger that cannot be written has been reported already
                await exchange.abandon()

    async def _answer(self, engine: Engine, batch: Sequence[_Waiting]) -> None:
        refusals = await asyncio.gather(*(one.exchange.open(one.key) for one in batch))
        admitted = [one for one, refusal in zip(batch, refusals, strict=True) if refusal is None]
        results = await generate(engine, [one.call for one in admitted]) if admitted else []
        ends = [self._settle(one, result) for one, result in zip(admitted, results, strict=True)]
        ends += [self._tell(one, refusal) for one, refusal in zip(batch, refusals, strict=True) if refusal is not None]
        await asyncio.gather(*ends)

    async def _settle(self, one: _Waiting, result: Completion | EngineError) -> None:
        if isinstance(result, EngineError):
            failed = CallFailed(one.key, result)
            wait_s = one.exchange.over(one.call, "", failed)
            if wait_s is None:
                await self._tell(one, failed)
            else:
                self._aside(self._queue_again(one, wait_s))
            return
        end = CallEnd(one.key, result.finish_reason, result.usage, result.notes)
        one.exchange.over(one.call, result.text, end)
        await self._tell(one, *([CallText(one.key, result.text)] if result.text else []), end)

    async def _tell(self, one: _Waiting, *events: Event) -> None:
        for event in events:
            self._carry_out(one.exchange, await one.exchange.tell(event))

    async def _queue_again(self, one: _Waiting, wait_s: float) -> None:
        await self._parts.attempts.sleep(wait_s)
        self._queue(one)

    async def _ask_cache(self, one: _Waiting) -> None:
        if not (known := await one.exchange.given(one.key, one.call)):
            self._queue(one)
            return
        try:
            await self._tell(one, *known)
        except Exception as exc:  # noqa: BLE001 - as in work
            self._answers.put_nowait(exc)

    def _carry_out(self, exchange: Exchange, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, StartCall):
                one = _Waiting(exchange, action.key, action.call)
                if self._parts.cache is not None and action.key == TEACHER:
                    self._aside(self._ask_cache(one))
                else:
                    self._queue(one)
        if exchange.done and exchange in self._under_way:
            self._under_way.remove(exchange)
            self._answers.put_nowait(exchange.answer)

    def _queue(self, one: _Waiting) -> None:
        waiting = self.teacher_calls if one.key.role == "teacher" else self.student_calls
        waiting.put_nowait(one)

    def _aside(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)
