"""The writer thread: commits what gathered while the last commit ran, and wakes whoever waits, once for a group."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from gkt_plugins.accounting._store import Group, Result
from gkt_plugins.errors import BackendError

__all__ = ["WriterThread"]

_log = logging.getLogger(__name__)

_GROUP = 512
"""Most operations of one commit."""


class _Waiting(NamedTuple):
    kind: Literal["calls", "requests", "budgets"]
    what: Any
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]


class WriterThread:
    """Takes operations from any number of event loops to one database."""

    def __init__(self, write: Callable[[Group], list[Result]]) -> None:
        """``write``: applies a group, all or nothing; called on the thread."""
        self._write = write
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gkt-ledger", daemon=True)
        self._thread.start()

    def submit(self, kind: Literal["calls", "requests", "budgets"], what: Any) -> asyncio.Future[Any]:
        """Hand an operation over; it is carried out even when nobody waits for it any more.

        :returns: a future of the running event loop: what ``write`` gave back for it, or raised.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._queue.put(_Waiting(kind, what, loop, done))
        return done

    def stop(self) -> None:
        """Carry out what was handed over, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        more = True
        while more:
            waiting: list[_Waiting] = []
            with contextlib.suppress(queue.Empty):
                item = self._queue.get()
                while item is not None:
                    waiting.append(item)
                    if len(waiting) == _GROUP:
                        break
                    item = self._queue.get_nowait()
                more = item is not None
            if waiting:
                self._carry_out(waiting)

    def _carry_out(self, waiting: Sequence[_Waiting]) -> None:
        group = Group()
        for one in waiting:
            group.add(one.kind, one.what)
        try:
            results = self._write(group)
        except Exception as exc:  # noqa: BLE001 - it belongs to the callers who wait, and this thread must live on
            results = [_own(exc) for _ in waiting]
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Result]]] = {}
        for one, result in zip(waiting, results, strict=True):
            by_loop.setdefault(one.loop, []).append((one.done, result))
        for loop, outcomes in by_loop.items():
            with contextlib.suppress(RuntimeError):  # a loop that has ended waits for nothing
                loop.call_soon_threadsafe(_tell, outcomes)


def _own(exc: Exception) -> Exception:
    """An error of each caller's own, since each raises it through a stack of its own."""
    error = BackendError(*exc.args) if isinstance(exc, BackendError) else BackendError(f"the ledger failed: {exc!r}")
    error.__cause__ = exc
    return error


def _tell(outcomes: Sequence[tuple[asyncio.Future[Any], Result]]) -> None:
    for done, result in outcomes:
        if done.done():  # cancelled: whoever waited has gone, and would not hear of a failure
            if isinstance(result, Exception):
                _log.error("%s; nobody waits for that record any more", result)
        elif isinstance(result, Exception):
            done.set_exception(result)
        else:
            done.set_result(result)
