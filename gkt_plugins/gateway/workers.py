"""Several processes for one gateway: started, watched, and ended together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import FrameType

from gkt_plugins.errors import BackendError, GktError

__all__ = ["SHARED", "counting_together", "supervise"]

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder in which workers count together."""

_log = logging.getLogger(__name__)

_TOO_SOON_S = 5.0
"""A worker that ends sooner would only end again."""


@contextlib.contextmanager
def counting_together() -> Iterator[None]:
    """Let the workers that are started inside the block answer for each other when ``/metrics`` is asked.

    To be entered before prometheus_client is imported, which looks at the variable once. A folder that the environment
    names already is used as it is.
    """
    if SHARED in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="gkt-metrics-", ignore_cleanup_errors=True) as folder:
        os.environ[SHARED] = folder
        try:
            yield
        finally:
            del os.environ[SHARED]


def supervise(count: int, work: Callable[[], None]) -> None:
    """Run ``work`` in ``count`` processes until SIGTERM or SIGINT, which each of them gets too. One that dies is
    replaced.

    ``work`` must have no thread yet and no event loop, because processes are forked.

    :raises BackendError: a worker ended as soon as it had begun; the others are ended too.
    """
    started: dict[int, float] = {}
    ending = False
    failed = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ending
        ending = True
        for worker in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGTERM)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for _ in range(count):
            started[_fork(work)] = time.monotonic()
        while started:
            worker, _ = os.wait()
            lived_s = time.monotonic() - started.pop(worker)
            _forget(worker)
            if ending:
                continue
            if lived_s < _TOO_SOON_S:
                failed = True
                end(signal.SIGTERM, None)
                continue
            _log.error("the gateway's worker %d ended after %.0f s and is replaced", worker, lived_s)
            started[_fork(work)] = time.monotonic()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed:
        raise BackendError("a worker of the gateway ended as soon as it had begun; what it said before tells why")


def _forget(worker: int) -> None:
    """What a worker that ended had in flight is in flight no more; what it counted still counts."""
    if SHARED in os.environ:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker)  # type: ignore[no-untyped-call]


def _fork(work: Callable[[], None]) -> int:
    """The process id of a child that does ``work`` and nothing else."""
    worker = os.fork()
    if worker:
        return worker
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        work()
        code = 0
    except GktError as exc:
        print(f"error: {exc}", file=sys.stderr)
    except BaseException:  # noqa: BLE001 - nothing of the parent's may run in the child
        _log.exception("a worker failed")
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
