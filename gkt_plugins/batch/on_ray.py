"""The same batch on Ray Data: workers answer blocks of lines, this process reads the input and writes the outputs.

Workers open engines and ledger for themselves, from the configuration that they are sent; keys are read from their own
environment, and never sent. More than one machine needs a ledger that all of them reach: PostgreSQL.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gkt_plugins.batch.job import Doing, Todo
from gkt_plugins.batch.lines import BatchLine, read_line
from gkt_plugins.batch.outcomes import Outcome, failed
from gkt_plugins.batch.runner import Runner, samplings
from gkt_plugins.errors import BackendError, GktError, require

if TYPE_CHECKING:
    from gkt_plugins.config import Config

__all__ = ["LINES_PER_BLOCK", "STORE_BYTES", "run_on_ray"]

LINES_PER_BLOCK = 16
"""What a worker takes at a time."""

STORE_BYTES = 100 * 1024 * 1024
"""Of a cluster that is started here: lines and answers are text, and small."""

_BLOCKS_PER_WORKER = 2
"""At a time, so that the slow last line of one block does not leave engines idle."""


def run_on_ray(workers: int) -> Doing:
    """On the cluster at ``RAY_ADDRESS``, or on one of ``workers`` processes that is started here and stopped again.

    :raises MissingDependencyError: Ray is not installed.
    """
    ray = require("ray", extra="ray")
    require("ray.data", extra="ray")

    async def doing(todo: Todo, ready: Callable[[], None]) -> AsyncGenerator[Outcome, None]:
        rows: list[dict[str, Any]] = []
        for line in todo():
            if line.error is not None:
                yield failed(line, line.error)
            else:
                rows.append({"number": line.number, "source": line.source})
        if not rows:
            return
        _start(ray, workers)
        try:
            found = await asyncio.to_thread(_dataset, ray, rows, _Plan.of(todo), workers)
            ready()
            while (row := await asyncio.to_thread(_next, found)) is not None:
                outcome = pickle.loads(row["outcome"])  # of a worker of ours
                if isinstance(outcome, GktError):
                    raise outcome
                yield outcome
        except ray.exceptions.RayError as exc:
            raise BackendError(f"Ray gave the batch up ({_first_line(exc)}); run again to go on") from exc
        finally:
            await asyncio.to_thread(ray.shutdown)

    return doing


def _start(ray: Any, workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs what it raises, page by page
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if "RAY_ADDRESS" not in os.environ:
        how |= {"num_cpus": workers, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(**how)
    except (ConnectionError, RuntimeError, ValueError) as exc:
        raise BackendError(
            f"Ray cannot be reached or started ({_first_line(exc)}); check RAY_ADDRESS, or leave it unset"
        ) from exc


@dataclass(frozen=True)
class _Plan:
    """What every worker needs to know."""

    config: Config
    pipelines: tuple[str, ...]
    pipeline: str | None
    concurrency: int | None

    @classmethod
    def of(cls, todo: Todo) -> _Plan:
        return cls(todo.job.config, todo.pipelines, todo.job.pipeline, todo.job.concurrency)


def _dataset(ray: Any, rows: list[dict[str, Any]], plan: _Plan, workers: int) -> Iterator[Mapping[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # so that a row comes here when it is there, and not with thousands of others
    context.execution_options.preserve_order = False
    blocks = -(-len(rows) // LINES_PER_BLOCK)
    answered = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        Worker,
        fn_constructor_args=(plan,),
        batch_size=LINES_PER_BLOCK,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=_BLOCKS_PER_WORKER,
            max_concurrent_calls_per_actor=_BLOCKS_PER_WORKER,
            enable_true_multi_threading=True,
        ),
        num_cpus=1,
    )
    return iter(answered.iter_rows())


def _next(found: Iterator[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next(found, None)


class Worker:
    """Answers blocks of lines on an event loop of its own, which all of its blocks share."""

    def __init__(self, plan: _Plan) -> None:
        """Opens engines and ledger. Raises what they raise."""
        from gkt_plugins.plugins import load_plugins

        self._plan = plan
        self._samplings = samplings(plan.config)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="gkt-batch", daemon=True).start()
        self._runner = Runner(plan.config, load_plugins(), os.environ, plan.pipelines, concurrency=plan.concurrency)
        self._failed: GktError | None = None
        try:
            self._wait(self._runner.__aenter__())
        except GktError as exc:
            self._failed = exc  # Ray would start the worker again and again

    def __call__(self, block: Mapping[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        """One row per line, as it is done with."""
        if self._failed is not None:
            yield {"outcome": [pickle.dumps(self._failed)]}
            return
        lines = [
            read_line(int(number), bytes(source), self._samplings, pipeline=self._plan.pipeline)
            for number, source in zip(block["number"], block["source"], strict=True)
        ]
        found: queue.SimpleQueue[Outcome | GktError | None] = queue.SimpleQueue()
        answering = asyncio.run_coroutine_threadsafe(self._answer(lines, found), self._loop)
        answering.add_done_callback(lambda _: found.put(None))
        while (outcome := found.get()) is not None:
            yield {"outcome": [pickle.dumps(outcome)]}
        answering.result()

    async def _answer(self, lines: list[BatchLine], found: queue.SimpleQueue[Outcome | GktError | None]) -> None:
        try:
            async with aclosing(self._runner.run(lambda: lines)) as outcomes:
                async for outcome in outcomes:
                    found.put(outcome)
        except GktError as exc:
            found.put(exc)

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _first_line(exc: BaseException) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(exc).__name__
