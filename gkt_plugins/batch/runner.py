"""Answers lines with the pipelines of a configuration: many at a time, each whole, each on record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gkt_plugins.accounting.accountant import Accountant
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.batch.forwarding import Forwarding
from gkt_plugins.batch.lines import BatchLine, read_line
from gkt_plugins.batch.outcomes import Outcome, answered, failed
from gkt_plugins.contracts import Sampling, UsageRecord
from gkt_plugins.errors import BackendError, EngineError, GktError
from gkt_plugins.gateway.access import Client
from gkt_plugins.gateway.budgeting import Admission, Ladder
from gkt_plugins.guidance.answers import Answer
from gkt_plugins.guidance.batch import BatchOptions, run_batch
from gkt_plugins.guidance.events import Request
from gkt_plugins.guidance.exchange import Parts
from gkt_plugins.guidance.pipeline import default_sampling, open_pipelines
from gkt_plugins.guidance.presets import PRESETS
from gkt_plugins.openai_wire.errors import InvalidRequest, error_body
from gkt_plugins.openai_wire.provenance import provenance, way_of
from gkt_plugins.openai_wire.replies import reply

if TYPE_CHECKING:
    from gkt_plugins.config import Config
    from gkt_plugins.plugins import Plugins

__all__ = ["Lines", "Runner", "samplings"]

Lines = Callable[[], Iterable[BatchLine]]
"""The lines of a batch, from the first one; called once for each pipeline, and once more for what is tried again."""

_PATIENCE = 4
"""Pauses of a breaker in a row that new lines wait out."""

_OUTCOMES_WAITING = 256
"""More than that, and the run waits for whoever writes the files."""


def samplings(config: Config) -> dict[str, Sampling]:
    """Every pipeline, with what a line is answered with that does not say how."""
    return {name: default_sampling(section) for name, section in config.pipelines.items()}


class Runner:
    """Use it as an ``async with`` block, which opens engines, ledger and guidance cache."""

    def __init__(
        self,
        config: Config,
        plugins: Plugins,
        env: Mapping[str, str],
        names: Iterable[str],
        *,
        concurrency: int | None = None,
    ) -> None:
        """``names``: the pipelines that lines ask for. ``concurrency``: calls at a time of each engine, at least 1; by
        default the preset's, or 16."""
        self._config = config
        self._plugins = plugins
        self._env = env
        self._names = tuple(names)
        self._concurrency = concurrency
        self._stack = AsyncExitStack()
        self._parts: dict[str, Parts] = {}
        self._ladder: Ladder | None = None

    async def __aenter__(self) -> Self:
        """Raises what the engines, the ledger and the budget's prices raise."""
        async with AsyncExitStack() as stack:
            self._parts = await open_pipelines(self._names, self._config, self._plugins, self._env, stack)
            accounts = next((parts.accounts for parts in self._parts.values()), None)
            if isinstance(accounts, Accountant):
                self._ladder = Ladder.from_config(self._config, accounts, self._parts.values())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(self, lines: Lines) -> AsyncGenerator[Outcome, None]:
        """Answer every line, and yield each as it is done with, in any order.

        A line whose engine failed in a way that may pass is tried once more when the others are done. Closing the
        iterator cancels what is under way and puts it on record.

        :raises BackendError: the ledger cannot be written; nothing goes out that would not be accounted for.
        """
        for line in lines():
            if line.error is not None:
                yield failed(line, line.error)
        for name in self._parts:
            again: dict[int, Outcome] = {}
            async with aclosing(self._pass(name, lines, None)) as outcomes:
                async for outcome in outcomes:
                    if outcome.retryable:
                        again[outcome.number] = outcome
                    else:
                        yield outcome
            if again:
                async with aclosing(self._pass(name, lines, again)) as outcomes:
                    async for outcome in outcomes:
                        yield outcome.after(again[outcome.number])

    async def _pass(self, name: str, lines: Lines, again: Collection[int] | None) -> AsyncGenerator[Outcome, None]:
        """The lines of one pipeline; or those of them with these numbers, ``again``."""
        chosen: Iterable[BatchLine] = (line for line in lines() if line.pipeline == name)
        if again is not None:  # with ids of their own, in a ledger that knows the first try
            known = samplings(self._config)
            chosen = (
                read_line(line.number, line.source, known, pipeline=name) for line in chosen if line.number in again
            )
        work = _Pass(self._parts[name], self._ladder, self._options(name))
        task = asyncio.create_task(work.answer(chosen))
        try:
            while (item := await work.outcomes.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _options(self, name: str) -> BatchOptions:
        if self._concurrency is not None:
            return BatchOptions(self._concurrency, self._concurrency, 4 * self._concurrency)
        preset = self._config.pipelines[name].guidance.preset
        return BatchOptions() if preset is None else PRESETS[preset].batches


@dataclass
class _UnderWay:
    """A line whose answers are not all there."""

    line: BatchLine
    admission: Admission
    started_at: float
    answers: dict[str, Answer] = field(default_factory=dict)


class _Pass:
    """The lines of one pipeline on their way through :func:`run_batch`, or past it."""

    def __init__(self, parts: Parts, ladder: Ladder | None, options: BatchOptions) -> None:
        self.outcomes: asyncio.Queue[Outcome | Exception | None] = asyncio.Queue(_OUTCOMES_WAITING)
        """Ends with None, or with what broke the run."""
        self._parts = parts
        self._ladder = ladder
        self._options = options
        self._under_way: dict[str, _UnderWay] = {}
        self._forwarding = asyncio.Semaphore(options.student_batch)
        self._asides: set[asyncio.Task[None]] = set()
        """Lines that are forwarded, and those whose outcome is being put on record."""
        self._begun: set[int] = set()
        """Numbers of the lines that are not done with."""
        self._settled = asyncio.Event()
        """One of them is, since this was cleared."""
        self._pauses = 0

    async def answer(self, lines: Iterable[BatchLine]) -> None:
        """Answer all of them."""
        try:
            async with aclosing(run_batch(self._feed(lines), self._parts, self._options)) as answers:
                async for answer in answers:
                    if len(self._asides) >= _OUTCOMES_WAITING:
                        await asyncio.wait(self._asides, return_when=asyncio.FIRST_COMPLETED)
                    self._aside(self._take(answer))  # the ledger takes its time, and other answers come meanwhile
            await asyncio.gather(*self._asides)
        except Exception as exc:  # noqa: BLE001 - it belongs to whoever reads the outcomes
            await self.outcomes.put(exc)
        finally:
            asides = list(self._asides)
            for task in asides:
                task.cancel()
            await asyncio.gather(*asides, return_exceptions=True)
        await self.outcomes.put(None)

    def _aside(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as exc:  # noqa: BLE001 - as in answer
            await self.outcomes.put(exc)

    async def _feed(self, lines: Iterable[BatchLine]) -> AsyncGenerator[Request, None]:
        for line in lines:
            assert line.asked is not None
            await self._calm()
            started_at = time.time()
            try:
                admission = await self._admit(line)
            except BackendError:
                raise
            except GktError as exc:
                await self._done(_UnderWay(line, Admission(line.asked.requests), started_at), exc, (), route="student")
                continue
            one = _UnderWay(line, admission, started_at)
            self._begun.add(line.number)
            if line.asked.features:
                await self._forwarding.acquire()
                self._aside(self._forward(one))
                continue
            for request in admission.requests:
                self._under_way[request.request_id] = one
                yield request

    async def _calm(self) -> None:
        """Wait while an engine is being left alone, or tried by one call: a batch has time, and lines that come
        meanwhile would only be refused, or answered without guidance. Patience ends: an engine may be gone for good."""
        for engine in filter(None, (self._parts.teacher, self._parts.student)):
            breaker = self._parts.attempts.breaker(engine.name)
            if not breaker.is_open:
                self._pauses = 0
            while breaker.is_open and self._pauses < _PATIENCE:
                if breaker.remaining_s:
                    self._pauses += 1
                    await self._parts.attempts.sleep(breaker.remaining_s)
                elif self._begun:
                    self._settled.clear()
                    await self._settled.wait()
                else:
                    break  # nobody is trying it: this line does

    async def _admit(self, line: BatchLine) -> Admission:
        assert line.asked is not None
        if self._ladder is None:
            return Admission(line.asked.requests)
        forwarded = bool(line.asked.features)
        return await self._ladder.admit(Client(), line.asked.requests, self._parts, forwarded=forwarded)

    async def _forward(self, one: _UnderWay) -> None:
        asked = one.line.asked
        assert asked is not None
        forwarding = Forwarding(asked, self._parts, degraded=one.admission.degraded)
        try:
            result: Mapping[str, Any] | GktError = await forwarding.answer()
        except (EngineError, InvalidRequest) as exc:
            result = exc
        finally:
            self._forwarding.release()
        await self._done(one, result, forwarding.records, route="forwarded")

    async def _take(self, answer: Answer) -> None:
        """An answer is complete; perhaps the line's last."""
        one = self._under_way.pop(answer.request_id)
        one.answers[answer.request_id] = answer
        if len(one.answers) < len(one.admission.requests):
            return
        asked = one.line.asked
        assert asked is not None
        answers = [one.answers[request.request_id] for request in one.admission.requests]
        records = [record for answer in answers for record in answer.records]
        way = way_of(answers)
        errors = [error for answer in answers for error in answer.errors]
        if errors:  # an answer without one of its choices is none
            await self._done(one, errors[0], records, route=way)
            return
        accounts = self._parts.accounts
        told = provenance(
            answers,
            teacher=None if self._parts.teacher is None else self._parts.teacher.model,
            student=self._parts.student.model,
            prices=accounts.prices if isinstance(accounts, Accountant) else None,
            notes=[*asked.notes, one.admission.note] if one.admission.note else asked.notes,
            degraded=one.admission.degraded,
        )
        await self._done(one, reply(asked, answers, told, created=int(one.started_at)), records, route=way)

    async def _done(
        self, one: _UnderWay, result: Mapping[str, Any] | GktError, records: Sequence[UsageRecord], *, route: str
    ) -> None:
        """Put what became of a line on record, then tell."""
        await one.admission.settle(records)
        if isinstance(result, GktError):
            outcome = failed(one.line, result, records)
            code = str(error_body(result)[1]["error"]["code"])
        else:
            outcome, code = answered(one.line, result, records), ""
        if isinstance(self._parts.accounts, Accountant):
            await self._parts.accounts.request(_record(one, outcome, result, route, code, self._parts.name))
        await self.outcomes.put(outcome)
        self._begun.discard(one.line.number)
        self._settled.set()


def _record(
    one: _UnderWay, outcome: Outcome, result: Mapping[str, Any] | GktError, route: str, code: str, pipeline: str
) -> RequestRecord:
    """No times: how long a line waited for its turn says nothing of what a client would have waited."""
    asked = one.line.asked
    assert asked is not None
    return RequestRecord(
        request_id=asked.request_id,
        pipeline=pipeline,
        key="",
        started_at=one.started_at,
        route=route,
        status="ok" if not code else "error" if outcome.records else "refused",
        error=code,
        choices=sum(request.n for request in asked.requests),
        guidance_tokens=0 if isinstance(result, GktError) else result["gkt"]["guidance_tokens"],
        degraded=outcome.degraded,
        cached=outcome.cached,
        retries=sum(record.attempt > 0 for record in outcome.records),
    )
