"""The thread that a model works on: it collects concurrent calls into batches and outlives every error of one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

from gkt_plugins.errors import EngineError
from gkt_transformers._rows import Job

__all__ = ["BatchStats", "Runner", "Worker"]


class Runner(Protocol):
    """Decodes jobs on the worker's thread."""

    def run(self, jobs: Sequence[Job], waiting: Callable[[int], list[Job]]) -> None:
        """Answer ``jobs``: each is ended or failed before this returns.

        ``waiting(n)`` takes up to ``n`` jobs that came meanwhile, without waiting; they are then answered too.
        """
        ...


@dataclass(slots=True)
class BatchStats:
    """How calls were collected, since the engine was built."""

    batches: int = 0
    calls: int = 0
    """All calls that were answered, refused or cancelled."""
    joined: int = 0
    """Those that joined a batch already under way."""
    largest: int = 0


class Worker:
    """Owns one runner and its thread."""

    def __init__(self, make_runner: Callable[[], Runner], *, name: str, max_batch: int, max_wait_s: float) -> None:
        """``make_runner`` is called on the thread, once."""
        self.stats = BatchStats()
        self._name = name
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, args=(make_runner,), name=f"gkt-{name}", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue ``jobs``.

        :raises EngineError: the engine is closed.
        """
        with self._lock:  # a job queued behind the closing mark would wait for ever
            if self._closing:
                raise EngineError(f"engine {self._name!r} is closed; build it again")
            for job in jobs:
                self._queue.put(job)

    def close(self) -> None:
        """Fail what waits, finish what is being decoded, and end the thread. Safe to call twice."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._queue.put(None)
        self._thread.join()

    def _work(self, make_runner: Callable[[], Runner]) -> None:
        runner = make_runner()
        while (first := self._queue.get()) is not None:
            if self._closing:
                self._fail([first], EngineError(f"engine {self._name!r} was closed before this call's turn"))
                continue
            batch = self._collect(first)
            self._count(batch)
            taken = list(batch)

            def waiting(limit: int, taken: list[Job] = taken) -> list[Job]:
                more = self._more(limit)
                taken.extend(more)
                return more

            try:
                runner.run(batch, waiting)
            except Exception as exc:  # noqa: BLE001 - whatever happened, the callers must hear of it
                self._fail(taken, EngineError(f"engine {self._name!r} failed while decoding: {exc!r}"))
            self._fail(taken, EngineError(f"engine {self._name!r} gave no answer"))

    def _collect(self, first: Job) -> list[Job]:
        batch = [first]
        deadline = time.monotonic() + self._max_wait_s
        while len(batch) < self._max_batch:
            try:
                job = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break
            if job is None:
                self._queue.put(None)
                break
            batch.append(job)
        return batch

    def _more(self, limit: int) -> list[Job]:
        more: list[Job] = []
        while len(more) < limit:
            try:
                job = self._queue.get_nowait()
            except Empty:
                break
            if job is None:
                self._queue.put(None)
                break
            more.append(job)
        self.stats.calls += len(more)
        self.stats.joined += len(more)
        return more

    def _count(self, batch: Sequence[Job]) -> None:
        self.stats.batches += 1
        self.stats.calls += len(batch)
        self.stats.largest = max(self.stats.largest, len(batch))

    @staticmethod
    def _fail(jobs: Sequence[Job], error: EngineError) -> None:
        for job in jobs:
            job.fail(error)
