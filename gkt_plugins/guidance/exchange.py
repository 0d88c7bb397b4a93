"""What both drivers share: one request's machine, its answer so far, and the records of its calls."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from gkt_plugins.contracts import Engine, UsageRecord
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.answers import Answer, AnswerBuilder
from gkt_plugins.guidance.attempts import Attempts
from gkt_plugins.guidance.cache import GuidanceCache
from gkt_plugins.guidance.events import Action, CallEnd, CallKey, Cancelled, Event, RecordUsage, Request, Rules
from gkt_plugins.guidance.machine import GuidanceMachine
from gkt_plugins.guidance.timings import Timings

__all__ = ["Exchange", "Parts", "UsageSink", "as_engine_error"]


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
    """One request under way. The driver moves text; everything else happens here."""

    def __init__(self, request: Request, parts: Parts, *, clock: Callable[[], float] = time.time) -> None:
        """``clock``: seconds since the epoch, for the records."""
        request = request if request.request_id else replace(request, request_id=uuid.uuid4().hex)
        self.request_id = request.request_id
        self._parts = parts
        self._clock = clock
        self._machine = GuidanceMachine(request, parts.rules)
        self._answer = AnswerBuilder(request.request_id)
        self._open: dict[CallKey, UsageRecord] = {}
        self._telling = 0
        self.timings = Timings(time.perf_counter())
        """When each of its calls began, first gave text and ended."""

    @property
    def done(self) -> bool:
        """The answer is complete, and everything about it is on record; of several callers of :meth:`tell` who wait
        at once, the last to come back is the first to see it."""
        return self._machine.done and not self._telling

    @property
    def answer(self) -> Answer:
        """The answer so far."""
        return self._answer.build()

    def begin(self) -> list[Action]:
        """The machine's first actions."""
        return self._noted(self._machine.start())

    async def open(self, key: CallKey) -> None:
        """Put the call on record; to be awaited before it goes out."""
        engine = self._parts.engine(key)
        record = UsageRecord(
            request_id=self.request_id,
            call=key.number,
            role=key.role,
            attempt=0,
            engine=engine.name,
            model=engine.model,
            status="open",
            started_at=self._clock(),
            pipeline=self._parts.name,
        )
        self._open[key] = record
        if self._parts.accounts is not None:
            await self._parts.accounts.opened(record)

    async def tell(self, event: Event) -> list[Action]:
        """The machine's answer to ``event``, with the usage in it already on record."""
        actions = self._machine.receive(event)
        self._telling += 1
        try:
            for action in actions:
                if isinstance(action, RecordUsage) and action.key in self._open:
                    await self._close(action)
        finally:
            self._telling -= 1
        return self._noted(actions)

    async def _close(self, action: RecordUsage) -> None:
        record = replace(self._open.pop(action.key), status=action.status, usage=action.usage)
        if self._parts.accounts is not None:
            record = await self._parts.accounts.closed(record)
        self._answer.records.append(record)

    async def abandon(self) -> None:
        """Whoever asked has gone, and no call is still at work: put what was used on record."""
        if not self.done:
            await self.tell(Cancelled())
        while running := self._machine.running:
            await self.tell(CallEnd(next(iter(running)), "cancelled"))

    def _noted(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            self._answer.add(action)
        return actions


def as_engine_error(engine: Engine, cause: Exception) -> EngineError:
    """``cause`` itself, or a sentence around what an engine should not have let through."""
    if isinstance(cause, EngineError):
        return cause
    error = EngineError(f"the engine {engine.name!r} failed unexpectedly: {cause!r}; see its log, and tell its author")
    error.__cause__ = cause
    return error
