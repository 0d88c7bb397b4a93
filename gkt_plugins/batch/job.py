"""One batch from its input to its outputs: what is left to do, done here or on a cluster, and written as it comes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gkt_plugins.batch.files import BatchFiles
from gkt_plugins.batch.lines import BatchLine, read_lines
from gkt_plugins.batch.outcomes import Outcome
from gkt_plugins.batch.progress import BatchProgress
from gkt_plugins.batch.runner import Runner, samplings
from gkt_plugins.batch.summary import Summary
from gkt_plugins.errors import ConfigError

if TYPE_CHECKING:
    from gkt_plugins.config import Config
    from gkt_plugins.plugins import Plugins

__all__ = ["BatchJob", "Doing", "run_here"]


@dataclass(frozen=True)
class BatchJob:
    """A file of requests, and who answers them."""

    config: Config
    input: Path
    pipeline: str | None = None
    """Answers every line; None: the pipeline that its model names."""
    concurrency: int | None = None
    """Calls at a time of each engine; None: the preset's, or 16."""

    def __post_init__(self) -> None:
        """:raises ConfigError: there is no such pipeline."""
        if self.pipeline is not None and self.pipeline not in self.config.pipelines:
            known = ", ".join(sorted(self.config.pipelines)) or "none"
            raise ConfigError(f"there is no pipeline {self.pipeline!r}; [pipelines.NAME] sections that exist: {known}")

    def lines(self) -> Iterator[BatchLine]:
        """Every line. Errors: as :func:`~gkt_plugins.batch.lines.read_lines`."""
        return read_lines(self.input, samplings(self.config), pipeline=self.pipeline)

    async def run(self, files: BatchFiles, doing: Doing) -> Summary:
        """Answer the lines that ``files`` do not have, and write them there.

        :raises ConfigError: the input cannot be read. Whatever ``doing`` raises.
        """
        todo = Todo(self, files.answered)
        summary = Summary(lines=todo.total, kept=todo.kept)
        if todo.total == todo.kept:
            return summary
        with BatchProgress(summary) as progress:
            started = time.perf_counter()
            async with aclosing(doing(todo, progress.answering)) as outcomes:
                async for outcome in outcomes:
                    (files.add_error if outcome.error else files.add)(outcome.row)
                    summary.add(outcome)
                    progress.advance()
                    summary.wall_s = time.perf_counter() - started
        return summary


class Todo:
    """The lines of a job that have no answer yet, counted beforehand, read as they are needed."""

    def __init__(self, job: BatchJob, answered: set[str]) -> None:
        self.job = job
        self._answered = frozenset(answered)
        self.total = 0
        self.kept = 0
        names: dict[str, None] = {}
        for line in job.lines():
            self.total += 1
            if self._has_answer(line):
                self.kept += 1
            elif line.asked is not None:
                names[line.pipeline] = None
        self.pipelines = tuple(names)
        """That are asked for."""

    def __call__(self) -> Iterator[BatchLine]:
        return (line for line in self.job.lines() if not self._has_answer(line))

    def _has_answer(self, line: BatchLine) -> bool:
        """A line that repeats the id of another has no answer of its own."""
        return line.asked is not None and line.custom_id in self._answered


Doing = Callable[[Todo, Callable[[], None]], AsyncGenerator[Outcome, None]]
"""Answers lines; calls the second argument when the engines are there."""


def run_here(plugins: Plugins, env: Mapping[str, str]) -> Doing:
    """In this process."""

    async def doing(todo: Todo, ready: Callable[[], None]) -> AsyncGenerator[Outcome, None]:
        job = todo.job
        async with Runner(job.config, plugins, env, todo.pipelines, concurrency=job.concurrency) as runner:
            ready()
            async with aclosing(runner.run(todo)) as outcomes:
                async for outcome in outcomes:
                    yield outcome

    return doing
