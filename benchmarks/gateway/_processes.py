"""Programs under test, each a process of its own: started, waited for, weighed, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

__all__ = ["Program", "free_port", "running"]

_PATIENCE_S = 120.0
"""By default, for a program to answer its first request; LiteLLM takes 10 to 30 s."""


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Program:
    """A running program and the processes that it started."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.log = log
        self._process = process

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _family(self) -> list[psutil.Process]:
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def rss_mb(self) -> float:
        """Memory in use, of all of its processes, in 10⁶ bytes."""
        return float(sum(process.memory_info().rss for process in self._family())) / 1e6

    def cpu_s(self) -> float:
        """Processor seconds used so far, of all of its processes."""
        return sum(sum(process.cpu_times()[:2]) for process in self._family())

    @contextlib.contextmanager
    def weighed(self, every_s: float = 0.25) -> Iterator[list[float]]:
        """``rss_mb`` again and again while the block runs."""
        weights: list[float] = []
        over = threading.Event()

        def weigh() -> None:
            while not over.wait(every_s):
                weights.append(self.rss_mb())

        thread = threading.Thread(target=weigh, daemon=True)
        thread.start()
        try:
            yield weights
        finally:
            over.set()
            thread.join()


@contextlib.contextmanager
def running(
    command: Sequence[str],
    ready_url: str,
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    patience_s: float = _PATIENCE_S,
) -> Iterator[Program]:
    """Run ``command`` in the block, which begins once ``ready_url`` answers anything below 500.

    ``env``: added to the environment. ``patience_s``: for its first answer.

    :raises RuntimeError: it ended, or did not answer in time; with the end of its log.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        _wait(process, ready_url, log, patience_s)
        yield Program(process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        with contextlib.suppress(ProcessLookupError):  # workers that outlived their parent
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as exc:
            if exc.code < 500:
                return
        except OSError:
            pass
        time.sleep(0.2)
    state = "did not answer in time" if process.poll() is None else f"ended with {process.returncode}"
    raise RuntimeError(f"{process.args!r} {state}; the end of its log:\n{log.read_text(errors='replace')[-2000:]}")
