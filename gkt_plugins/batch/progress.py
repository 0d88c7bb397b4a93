"""How far a batch is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gkt_plugins.batch.summary import Summary

__all__ = ["EVERY_S", "BatchProgress"]

EVERY_S = 30.0
"""Seconds between two lines of a log."""


class BatchProgress:
    """Shows lines done, the time that the others will take, failures, and the money so far, on stderr."""

    def __init__(
        self, summary: Summary, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``clock``: seconds."""
        self._summary = summary
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._began = self._told = clock()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(
            *columns,
            TextColumn("{task.fields[said]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("Loading engines", total=summary.lines, completed=summary.kept, said="")

    def answering(self) -> None:
        """Engines are there: time counts from now on."""
        self._began = self._told = self._clock()
        self._bar.update(self._task, description="Answering")

    def advance(self) -> None:
        """The summary has one line more."""
        self._bar.update(self._task, completed=self._summary.done, said=self._said())
        now = self._clock()
        if not self._console.is_terminal and now - self._told >= EVERY_S:
            self._told = now
            self._console.print(
                f"{self._summary.done} of {self._summary.lines} lines, {self._left(now)}, {self._said()}",
                soft_wrap=True,
            )

    def _said(self) -> str:
        failed = f", {len(self._summary.failures)} failed" if self._summary.failures else ""
        return f"{self._summary.money} so far{failed}"

    def _left(self, now: float) -> str:
        """Time for the rest at this run's pace."""
        done = self._summary.done - self._summary.kept
        seconds = (now - self._began) / max(1, done) * (self._summary.lines - self._summary.done)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"about {hours}:{minutes:02d}:{seconds:02d} left"

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, value, trace)
