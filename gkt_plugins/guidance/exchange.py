"""What both drivers share: one request's machine, its answer so far, and the records of its calls."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gkt_plugins.contracts import GUIDANCE_CACHE, Call, Completion, Engine, UsageRecord
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.answers import Answer, AnswerBuilder
from gkt_plugins.guidance.attempts import Attempts
from gkt_plugins.guidance.breaker import Breaker
from gkt_plugins.guidance.cache import Claim, Guidance, GuidanceCache, cache_key
from gkt_plugins.guidance.estimates import estimate_usage
from gkt_plugins.guidance.events import (
    TEACHER,
    Action,
    CallEnd,
    CallFailed,
    CallKey,
    CallText,
    Cancelled,
    Emit,
    Event,
    FailChoice,
    FailRequest,
    Finish,
    RecordUsage,
    Request,
    Rules,
)
from gkt_plugins.guidance.machine import GuidanceMachine
from gkt_plugins.guidance.single_flight import Landed
from gkt_plugins.guidance.timings import CallTiming, Timings

__all__ = ["Exchange", "Parts", "UsageSink", "as_engine_error", "generate"]

_log = logging.getLogger(__name__)


class UsageSink(Protocol):
    """Where usage goes; :class:`gkt_plugins.accounting.accountant.Accountant` is one."""

    async def opened(self, record: UsageRecord) -> None:
        """Keep an ``open`` record; awaited before the call goes out."""
        ...

    async def closed(self, record: UsageRecord) -> UsageRecord:
        """Keep the outcome and return it, priced; awaited before the answer's last text goes out."""
        ...


@dataclass(frozen=True)
class Parts:
    """What a pipeline is made of."""

    rules: Rules
    student: Engine
    teacher: Engine | None = None
    """None only where ``rules.length`` is None too."""
    accounts: UsageSink | None = None
    """None: usage is counted in the answers alone."""
    name: str = ""
    cache: GuidanceCache | None = None
    """Where the teacher's text is kept; None: nowhere. Shared by pipelines."""
    attempts: Attempts = field(default_factory=Attempts)
    """How often a call is tried, and which engines are left alone; to be shared by pipelines with the same engines."""

    def engine(self, key: CallKey) -> Engine:
        """Who answers the call ``key``."""
        if key.role == "student":
            return self.student
        assert self.teacher is not None
        return self.teacher


class Exchange:
    """One request under way. The driver moves text; everything else happens here.

    For each call that the machine starts a driver awaits :meth:`given`, whose events are the call's where there are
    any. Otherwise :meth:`open`, then the engine, then :meth:`over`, which says whether to open it once more. What
    remains of it goes to :meth:`tell`.
    """

    def __init__(self, request: Request, parts: Parts, *, clock: Callable[[], float] = time.time) -> None:
        """``clock``: seconds since the epoch, for the records."""
        request = request if request.request_id else replace(request, request_id=uuid.uuid4().hex)
        self.request_id = request.request_id
        self._parts = parts
        self._clock = clock
        self._machine = GuidanceMachine(request, parts.rules)
        self._answer = AnswerBuilder(request.request_id)
        self._open: dict[CallKey, UsageRecord] = {}
        """Calls on record whose end is not."""
        self._admitted: dict[CallKey, Breaker] = {}
        """Calls whose breaker waits to be told how they end."""
        self._attempts: dict[CallKey, int] = {}
        self._claim: Claim | None = None
        self._gone = False
        self._telling = 0
        self._closing: list[asyncio.Task[None]] = []
        """Calls that have ended, and are not on record yet."""
        self.timings = Timings(time.perf_counter())
        """When each of its calls began, first gave text and ended."""

    @property
    def done(self) -> bool:
        """The answer is complete, and everything about it is on record; of several callers of :meth:`tell` who wait
        at once, the last to come back is the first to see it."""
        return self._machine.done and not self._telling and not self._closing

    @property
    def answer(self) -> Answer:
        """The answer so far."""
        return self._answer.build(self._machine.guidance_tokens)

    def begin(self) -> list[Action]:
        """The machine's first actions."""
        return self._noted(self._machine.start())

    async def given(self, key: CallKey, call: Call) -> list[Event]:
        """What the guidance cache knows of the call, to be told in the engine's place; empty: ask the engine.

        Waits where another request is asking for the same. Never raises what a cache does.
        """
        cache = self._parts.cache
        if cache is None or key != TEACHER:
            return []
        engine = self._parts.engine(key)
        name = cache_key(engine, call, self._parts.rules.cutting_name)
        if name is None:
            return []
        began = time.perf_counter()
        found = await cache.claim(name)
        if isinstance(found, Claim):
            self._claim = found
            return []
        if isinstance(found, Landed):  # the teacher was at work meanwhile, for another
            now = time.perf_counter()
            self.timings[key] = CallTiming(began, now, now)
            found = found.value
        self._open[key] = replace(self._opening(key, engine), cost_nano=0, price_source=GUIDANCE_CACHE)
        self._answer.cached = True
        usage = replace(found.usage, seconds=0.0)
        end = CallEnd(key, found.finish_reason, usage, found.notes)
        return [CallText(key, found.text), end] if found.text else [end]

    async def open(self, key: CallKey) -> CallFailed | None:
        """Put the call, or its next attempt, on record; to be awaited before it goes out.

        :returns: None; or its end, where its engine is being left alone, so that it must not go out.
        """
        engine = self._parts.engine(key)
        refusal = self._parts.attempts.refusal(engine.name)
        if refusal is not None:
            if key == TEACHER and self._claim is not None:
                self._claim.give_up(failed=True)
            return CallFailed(key, refusal)
        self._admitted[key] = self._parts.attempts.breaker(engine.name)
        record = self._open[key] = self._opening(key, engine)
        if self._parts.accounts is not None:
            await self._parts.accounts.opened(record)
        timing = self.timings.get(key)
        if timing is None:
            self.timings[key] = CallTiming(time.perf_counter())
        else:
            timing.ended = None
        return None

    def came(self, key: CallKey) -> None:
        """The call's first text is here."""
        self.timings[key].first_text = time.perf_counter()
        if (breaker := self._admitted.get(key)) is not None:
            breaker.answering()

    def over(self, call: Call, text: str, end: CallEnd | CallFailed) -> float | None:
        """The engine is done with an attempt of ``call``, in which it gave ``text``.

        Who waits for the same guidance has it, whether or not this request's own reader is quick.

        :returns: seconds to wait before the call is opened again; None: ``end`` stands. A call is never tried again
            once text of it came.
        """
        key = end.key
        self.timings[key].ended = time.perf_counter()
        self._tell_breaker(end)
        claim = self._claim if key == TEACHER else None
        if isinstance(end, CallFailed):
            record = self._open[key]
            wait_s = None if text else self._parts.attempts.wait_s(record.engine, end.error, record.attempt)
            if wait_s is not None:
                self._attempts[key] = record.attempt + 1
                self._close(RecordUsage(key, "failed", end.usage or estimate_usage(call, "", end.error)))
            elif claim is not None:
                claim.give_up(failed=True)
            return wait_s
        if claim is not None and end.finish_reason != "cancelled":
            claim.keep(Guidance(text, end.finish_reason, end.usage or estimate_usage(call, text), end.notes))
        elif claim is not None:
            claim.give_up(failed=not self._gone)
        return None

    def text(self, event: CallText) -> list[Action]:
        """:meth:`tell` for text, which leaves nothing to wait for."""
        return self._noted(self._machine.receive(event))

    async def tell(self, event: Event) -> list[Action]:
        """The machine's answer to ``event``. When it is about the end of a choice all usage so far is on record; before
        that records are written while the next call begins."""
        actions = self._machine.receive(event)
        for action in actions:
            if isinstance(action, RecordUsage) and action.key in self._open:
                self._close(action)
        if self._closing and any(isinstance(action, Finish | FailChoice | FailRequest) for action in actions):
            await self._all_closed()
        return self._noted(actions)

    def leave(self) -> None:
        """Whoever asked has gone: calls that are cancelled from now on are so for that reason."""
        self._gone = True

    async def abandon(self, untold: Iterable[Event] = ()) -> None:
        """Whoever asked has gone, and no call is still at work: put what was used on record.

        ``untold``: what came and was not told yet.
        """
        self.leave()
        try:
            for event in untold:
                await self.tell(event)
            if not self.done:
                await self.tell(Cancelled())
            while running := self._machine.running:
                await self.tell(CallEnd(next(iter(running)), "cancelled"))
            await self._all_closed()
        finally:
            for breaker in self._admitted.values():
                breaker.dropped()
            if self._claim is not None:
                self._claim.give_up(failed=False)

    def _opening(self, key: CallKey, engine: Engine) -> UsageRecord:
        return UsageRecord(
            request_id=self.request_id,
            call=key.number,
            role=key.role,
            attempt=self._attempts.get(key, 0),
            engine=engine.name,
            model=engine.model,
            status="open",
            started_at=self._clock(),
            pipeline=self._parts.name,
        )

    async def _all_closed(self) -> None:
        """Wait for the records that are being written. Cancelling the wait disturbs none of them."""
        self._telling += 1
        try:
            while writing := list(self._closing):
                await asyncio.wait(writing)
                for task in writing:
                    if task in self._closing:
                        self._closing.remove(task)
                    task.result()
        finally:
            self._telling -= 1

    def _close(self, action: RecordUsage) -> None:
        """Begin to put the end of a call, or of an attempt, on record."""
        record = replace(self._open.pop(action.key), status=action.status, usage=action.usage)
        self._closing.append(asyncio.create_task(self._keep(record)))

    async def _keep(self, record: UsageRecord) -> None:
        if self._parts.accounts is not None:
            record = await self._parts.accounts.closed(record)
        self._answer.records.append(record)

    def _tell_breaker(self, end: CallEnd | CallFailed) -> None:
        breaker = self._admitted.pop(end.key, None)
        if breaker is None:
            return
        if isinstance(end, CallFailed) and end.error.retryable:
            breaker.failed()
            if breaker.is_open:
                engine = self._parts.engine(end.key).name
                _log.warning("the engine %r is left alone for %.0f s: %s", engine, breaker.remaining_s, end.error)
        elif isinstance(end, CallFailed) or end.finish_reason == "cancelled":
            breaker.dropped()
        else:
            breaker.succeeded()

    def _noted(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            self._answer.add(action)
        if self.timings.first_text is None and any(isinstance(action, Emit) for action in actions):
            self.timings.first_text = time.perf_counter()
        if self.timings.ended is None and self.done:
            self.timings.ended = time.perf_counter()
        return actions


def as_engine_error(engine: Engine, cause: Exception) -> EngineError:
    """``cause`` itself, or a sentence around what an engine should not have let through."""
    if isinstance(cause, EngineError):
        return cause
    error = EngineError(f"the engine {engine.name!r} failed unexpectedly: {cause!r}; see its log, and tell its author")
    error.__cause__ = cause
    return error


async def generate(engine: Engine, calls: Sequence[Call]) -> Sequence[Completion | EngineError]:
    """One result per call, whatever the engine does; a sole call is timed where the engine does not do so."""
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
