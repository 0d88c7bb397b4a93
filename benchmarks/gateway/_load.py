"""The load generator, run as a process of its own: one job as JSON on standard input, what it saw as JSON on standard
output. The same for every side, so what it costs itself is in all of them.

A *journey* is one or several requests, one after the other: what a client does to get one answer.

- ``open``    journeys begin at random moments (exponential pauses, fixed seed), whatever became of those before, while
              streams run beside
- ``closed``  so many clients, each beginning its next journey when the last is over
- ``hold``    streams only, all at the same time
"""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import orjson
import uvloop

from benchmarks.gateway._client import Connections, Outcome, Prepared

__all__ = ["Ask", "Job", "Seen", "generate"]


@dataclass(frozen=True)
class Ask:
    """One request."""

    url: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    def prepared(self) -> Prepared:
        return Prepared.of(self.url, self.body, self.headers)


@dataclass(frozen=True)
class Job:
    """What the generator is to do."""

    kind: Literal["open", "closed", "hold"]
    seconds: float = 0.0
    """How long journeys begin; what runs then is waited for."""
    journey: Sequence[Ask] = ()
    rate: float = 0.0
    """Journeys begun per second (``open``)."""
    clients: int = 0
    """Journeys at the same time (``closed``)."""
    warm_s: float = 0.0
    """Nothing that ended before this is counted."""
    stream: Sequence[Ask] = ()
    """A journey of one or more streams."""
    streams: int = 0
    ramp_s: float = 1.0
    """The streams begin evenly over this time."""
    seed: int = 0


@dataclass
class Seen:
    """What the generator saw. Times in milliseconds."""

    answers_ms: list[float] = field(default_factory=list)
    """Of every journey that is counted."""
    rate: float = 0.0
    """Journeys ended per second of the time that is counted (``closed``)."""
    first_ms: list[float] = field(default_factory=list)
    """How long the first text of each stream was under way."""
    delays_ms: list[float] = field(default_factory=list)
    """The same of all further texts."""
    tokens: int = 0
    """Texts received by streams."""
    streams_ok: int = 0
    most_streams: int = 0
    """At the same time."""
    late_ms: list[float] = field(default_factory=list)
    """How much later than planned journeys began: a generator that cannot keep up says so here (``open``)."""
    errors: list[str] = field(default_factory=list)
    """The first of them."""
    num_errors: int = 0


class _Generator:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._connections = Connections()
        self._journey = [ask.prepared() for ask in job.journey]
        self._stream = [ask.prepared() for ask in job.stream]
        self._running = 0
        self.seen = Seen()

    async def run(self) -> None:
        self._began = time.perf_counter()
        streams = [asyncio.create_task(self._hold(number)) for number in range(self._job.streams)]
        if self._job.kind == "open":
            await self._open()
        elif self._job.kind == "closed":
            await asyncio.gather(*(self._client() for _ in range(self._job.clients)))
            self.seen.rate = len(self.seen.answers_ms) / (self._job.seconds - self._job.warm_s)
        await asyncio.gather(*streams)

    async def _open(self) -> None:
        chance = random.Random(self._job.seed)
        tasks = []
        due = self._began + chance.expovariate(self._job.rate)
        while due < self._began + self._job.seconds:
            await asyncio.sleep(due - time.perf_counter())
            self.seen.late_ms.append((time.perf_counter() - due) * 1000)
            tasks.append(asyncio.create_task(self._travel()))
            due += chance.expovariate(self._job.rate)
        await asyncio.gather(*tasks)

    async def _client(self) -> None:
        while time.perf_counter() < self._began + self._job.seconds:
            await self._travel()

    async def _travel(self) -> None:
        begun = time.perf_counter()
        for prepared in self._journey:
            outcome = await self._connections.ask(prepared)
            if outcome.error:
                self._failed(outcome)
                return
        ended = time.perf_counter()
        counted_until = self._began + self._job.seconds if self._job.kind == "closed" else ended
        if self._began + self._job.warm_s <= ended <= counted_until:
            self.seen.answers_ms.append((ended - begun) * 1000)

    async def _hold(self, number: int) -> None:
        await asyncio.sleep(number * self._job.ramp_s / self._job.streams)
        self._running += 1
        self.seen.most_streams = max(self.seen.most_streams, self._running)
        first = True
        for prepared in self._stream:
            outcome = await self._connections.ask(prepared)
            self.seen.tokens += outcome.tokens
            if outcome.error:
                self._failed(outcome)
                break
            if first and outcome.first_ms is not None:
                self.seen.first_ms.append(outcome.first_ms)
            self.seen.delays_ms += outcome.delays_ms
            first = False
        else:
            self.seen.streams_ok += 1
        self._running -= 1

    def _failed(self, outcome: Outcome) -> None:
        self.seen.num_errors += 1
        if len(self.seen.errors) < 5:
            self.seen.errors.append(str(outcome.error))


def generate(job: Job, *, count_errors: bool = False) -> Seen:
    """Do ``job`` in a process of its own.

    :param count_errors: what fails is for the caller to judge.
    :raises RuntimeError: something failed, so that times would mean nothing.
    """
    command = [sys.executable, "-m", "benchmarks.gateway._load"]
    done = subprocess.run(command, input=orjson.dumps(asdict(job)), stdout=subprocess.PIPE, check=True)
    seen = Seen(**orjson.loads(done.stdout))
    if seen.num_errors and not count_errors:
        where = ", ".join(sorted({ask.url for ask in (*job.journey, *job.stream)}))
        raise RuntimeError(f"{seen.num_errors} requests to {where} failed; the first: {seen.errors[0]}")
    return seen


def main() -> None:
    raw = orjson.loads(sys.stdin.buffer.read())
    asks = {name: [Ask(**ask) for ask in raw[name]] for name in ("journey", "stream")}
    generator = _Generator(Job(**(raw | asks)))
    gc.disable()  # a pause of the generator would be measured as the gateway's
    uvloop.run(generator.run())
    sys.stdout.buffer.write(orjson.dumps(asdict(generator.seen)))


if __name__ == "__main__":
    main()
