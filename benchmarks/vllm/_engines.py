"""Engines under test: each a process of its own, all alive at the same time, one computing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.vllm._host import EngineSettings, Job, Seen

__all__ = ["Engine", "Side", "engines"]


_PATIENCE_S = 20.0
"""For an engine to end."""


@dataclass(frozen=True)
class Side:
    """One way of running vLLM."""

    name: str
    settings: EngineSettings
    environment: Mapping[str, str] = field(default_factory=dict)


class Engine:
    """A running engine."""

    def __init__(self, side: Side, log: Path) -> None:
        self.name = side.name
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.vllm._host", json.dumps(asdict(side.settings))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                bufsize=1,
                env={**os.environ, **side.environment},
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it is ready."""
        self._reply()

    def answer(self, job: Job) -> Seen:
        """Answer the job's prompts; nothing else of this engine runs."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        return Seen(**self._reply())

    def close(self) -> None:
        """End it, and whatever it started."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_S)  # what it dies of is printed last
            raise RuntimeError(
                f"the engine {self.name!r} ended; the end of its log:\n{self._log.read_text(errors='replace')[-3000:]}"
            )
        found: dict[str, Any] = json.loads(line)
        return found


@contextlib.contextmanager
def engines(sides: list[Side], work: Path) -> Iterator[dict[str, Engine]]:
    """All ``sides`` running, started two at a time."""
    with ExitStack() as stack:

        def started(side: Side) -> Engine:
            engine = Engine(side, work / f"{side.name}.log")
            stack.callback(engine.close)
            engine.wait()
            return engine

        with ThreadPoolExecutor(2) as pool:
            yield {engine.name: engine for engine in pool.map(started, sides)}
