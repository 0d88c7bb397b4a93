"""Guidance ahead of time: what the teacher would be asked for a file of requests, asked once and kept in the cache.

The teacher's call is the guidance machine's own, so that the request which comes later finds it. Nothing else is
called: with its answer bounded by the guidance, a request ends where the student would begin.

Source of the method: GKT, arXiv:2405.19635, whose own runs compute the guidance of a whole data set beforehand.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from gkt_plugins.accounting.accountant import Accountant
from gkt_plugins.batch.lines import BatchLine, read_lines
from gkt_plugins.batch.runner import samplings
from gkt_plugins.contracts import AHEAD, UsageRecord
from gkt_plugins.errors import BackendError, ConfigError
from gkt_plugins.gateway.access import Client
from gkt_plugins.gateway.budgeting import Admission, Ladder
from gkt_plugins.gateway.refusals import RefusedError
from gkt_plugins.guidance.batch import BatchOptions, run_batch
from gkt_plugins.guidance.cache import cache_key
from gkt_plugins.guidance.events import TEACHER, FailRequest, Request, StartCall
from gkt_plugins.guidance.exchange import Parts
from gkt_plugins.guidance.machine import GuidanceMachine
from gkt_plugins.guidance.pipeline import open_pipelines
from gkt_plugins.guidance.presets import PRESETS

if TYPE_CHECKING:
    from gkt_plugins.config import Config
    from gkt_plugins.plugins import Plugins

__all__ = ["Ahead", "AheadJob", "Fate"]

_NO_ROOM = "the budget of the day has no room for this guidance; go on tomorrow (UTC), or raise [budget] per_day"

Fate: TypeAlias = Literal["asked", "known", "repeated", "unguided", "drawn", "failed"]
"""Of one prompt. ``known``: it was in the cache before. ``repeated``: an earlier line has it too. ``unguided``: it gets
no guidance. ``drawn``: it is sampled without a seed, so that its guidance is drawn anew each time."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """What became of one prompt."""

    number: int
    """Of its line, from 1."""
    custom_id: str | None
    fate: Fate
    error: str = ""
    records: tuple[UsageRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class _Wanted:
    line: BatchLine
    request: Request
    """Ends with the teacher's call."""


@dataclass
class _Sorted:
    """The prompts of a file, by what has to be done."""

    done: list[Ahead] = field(default_factory=list)
    wanted: dict[str, list[_Wanted]] = field(default_factory=dict)
    """Pipeline → what its teacher has to be asked."""
    keys: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class AheadJob:
    """A file of requests, in the format of ``gkt run``, and whose teacher is asked."""

    config: Config
    input: Path
    pipeline: str | None = None
    """Guides every line; None: the pipeline that its model names."""
    concurrency: int | None = None
    """Calls at a time; None: the preset's, or 16."""

    def __post_init__(self) -> None:
        """:raises ConfigError: there is no cache, or no such pipeline, or it has no teacher."""
        if self.config.cache is None:
            raise ConfigError(
                "gkt guide fills the guidance cache, and the configuration has none; add a [cache] section"
            )
        if self.pipeline is not None and self.pipeline not in self.config.pipelines:
            known = ", ".join(sorted(self.config.pipelines)) or "none"
            raise ConfigError(f"there is no pipeline {self.pipeline!r}; [pipelines.NAME] sections that exist: {known}")
        if self.pipeline is not None and self.config.pipelines[self.pipeline].teacher is None:
            raise ConfigError(f"the pipeline {self.pipeline!r} has no teacher to ask; name another with --pipeline")

    async def run(
        self, plugins: Plugins, env: Mapping[str, str], ready: Callable[[int, int], None] | None = None
    ) -> AsyncGenerator[Ahead, None]:
        """Ask for what the cache does not have; yields each prompt as it is done with, and is in the cache at the end.

        ``ready``: told the number of prompts and of those to be asked, before the first of them is.

        :raises ConfigError: the file cannot be read.
        :raises BackendError: the ledger or the cache cannot be written.
        """
        lines = list(read_lines(self.input, samplings(self.config), pipeline=self.pipeline))
        guided = {name for name, section in self.config.pipelines.items() if section.teacher is not None}
        names = list(dict.fromkeys(line.pipeline for line in lines if line.asked and line.pipeline in guided))
        async with AsyncExitStack() as stack:
            opened = await open_pipelines(names, _teachers_alone(self.config, names), plugins, env, stack)
            cache = next((parts.cache for parts in opened.values()), None)
            if cache is not None:
                await cache.check()
            sorted_ = _Sorted()
            for line in lines:
                await _sort(line, opened.get(line.pipeline), sorted_)
            if ready is not None:
                to_ask = sum(map(len, sorted_.wanted.values()))
                ready(len(sorted_.done) + to_ask, to_ask)
            for ahead in sorted_.done:
                yield ahead
            for name, wanted in sorted_.wanted.items():
                async with aclosing(self._ask(name, opened[name], wanted)) as asked:
                    async for ahead in asked:
                        yield ahead
        if cache is not None and cache.lost:
            raise BackendError(
                f"{cache.lost} of the teacher's texts could not be written to the guidance cache; see to the store, "
                "and run this again"
            )

    async def _ask(self, name: str, parts: Parts, wanted: list[_Wanted]) -> AsyncGenerator[Ahead, None]:
        parts = replace(parts, name=name + AHEAD, rules=replace(parts.rules, on_teacher_error="fail"))
        accounts = parts.accounts
        ladder = Ladder.from_config(self.config, accounts, [parts]) if isinstance(accounts, Accountant) else None
        by_id = {one.request.request_id: one for one in wanted}
        held: dict[str, Admission] = {}
        settled = asyncio.Event()
        refused: list[Ahead] = []

        async def admitted() -> AsyncGenerator[Request, None]:
            for one in wanted:
                while ladder is not None:
                    admission = await _admission(ladder, one.request, parts)
                    if admission is not None:
                        held[one.request.request_id] = admission
                        break
                    if not held:
                        refused.append(_fate(one.line, "failed", _NO_ROOM))
                        break
                    settled.clear()  # calls under way hold more than they will cost
                    await settled.wait()
                if ladder is None or one.request.request_id in held:
                    yield one.request

        async with aclosing(run_batch(admitted(), parts, self._options(name))) as answers:
            async for answer in answers:
                if (admission := held.pop(answer.request_id, None)) is not None:
                    await admission.settle(answer.records)
                    settled.set()
                error = "; ".join(map(str, answer.errors))
                yield _fate(by_id[answer.request_id].line, "failed" if error else "asked", error, answer.records)
        for ahead in refused:
            yield ahead

    def _options(self, name: str) -> BatchOptions:
        if self.concurrency is not None:
            return BatchOptions(self.concurrency, self.concurrency, 4 * self.concurrency)
        preset = self.config.pipelines[name].guidance.preset
        return BatchOptions() if preset is None else PRESETS[preset].batches


async def _sort(line: BatchLine, parts: Parts | None, into: _Sorted) -> None:
    if line.asked is None:
        into.done.append(_fate(line, "failed", str(line.error)))
        return
    for request in line.asked.requests:
        found = await _look_at(line, request, parts, into)
        if isinstance(found, _Wanted):
            into.wanted.setdefault(line.pipeline, []).append(found)
        else:
            into.done.append(found)


async def _look_at(line: BatchLine, request: Request, parts: Parts | None, seen: _Sorted) -> Ahead | _Wanted:
    """What has to be done for one prompt, as the guidance machine itself would begin with it."""
    if parts is None or parts.teacher is None or parts.cache is None:
        return _fate(line, "unguided")
    [first, *_] = GuidanceMachine(request, parts.rules).start()
    if isinstance(first, FailRequest):
        return _fate(line, "failed", str(first.error))
    if not isinstance(first, StartCall) or first.key != TEACHER:
        return _fate(line, "unguided")
    key = cache_key(parts.teacher, first.call, parts.rules.cutting_name)
    if key is None:
        return _fate(line, "drawn")
    if key in seen.keys:
        return _fate(line, "repeated")
    seen.keys.add(key)
    if await parts.cache.has(key):
        return _fate(line, "known")
    budget = first.call.sampling.max_tokens
    sampling = replace(request.sampling, max_tokens=budget)
    return _Wanted(line, replace(request, sampling=sampling, n=1, guidance_tokens=budget, request_id=uuid.uuid4().hex))


async def _admission(ladder: Ladder, request: Request, parts: Parts) -> Admission | None:
    """Leave to ask for all of the guidance: less of it would be another entry. None: the budget has no room now."""
    try:
        admission = await ladder.admit(Client(), (request,), parts)
    except RefusedError:
        return None
    if admission.degraded:
        await admission.settle([])
        return None
    return admission


def _teachers_alone(config: Config, names: list[str]) -> Config:
    """The same pipelines, with no student that would have to be loaded: it is never called."""
    sections = {name: config.pipelines[name] for name in names}
    alone = {name: section.model_copy(update={"student": section.teacher}) for name, section in sections.items()}
    return config.model_copy(update={"pipelines": alone})


def _fate(line: BatchLine, fate: Fate, error: str = "", records: tuple[UsageRecord, ...] = ()) -> Ahead:
    return Ahead(line.number, line.custom_id, fate, error, records)
