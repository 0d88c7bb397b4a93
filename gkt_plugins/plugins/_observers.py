"""A background thread for observers, so that none of them can slow or break a request."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Observer", "ObserverThread"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Observer:
    """One plugin's implementation of an observing hook."""

    label: str
    """Hook and plugin, for the log."""
    call: Callable[[Any], object]


class ObserverThread:
    """Tells observers what happened, in order, on one daemon thread behind a bounded queue.

    The thread starts with the first item. An item that finds the queue full is dropped and counted, never waited for.
    """

    def __init__(self, capacity: int = 4096) -> None:
        """``capacity``: items that may wait, at least 1."""
        self._queue: queue.Queue[tuple[tuple[Observer, ...], object] | None] = queue.Queue(capacity)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Items that were lost because the observers could not keep up, or came after :meth:`close`."""
        return self._dropped

    def tell(self, observers: tuple[Observer, ...], item: object) -> None:
        """Queue ``item`` for ``observers``. Never blocks on them, never raises for them."""
        if not observers:
            return
        if threading.current_thread() is self._thread:  # one observer tells others: at once, or the end would lose it
            self._call(observers, item)
            return
        with self._lock:
            if not self._closed:
                self._ensure_running()
                try:
                    self._queue.put_nowait((observers, item))
                    return
                except queue.Full:
                    pass
            self._dropped += 1
            if self._dropped == 1:
                _log.warning("observers cannot keep up: records are being dropped (%s)", observers[0].label)

    def close(self, timeout_s: float = 5.0) -> None:
        """Give the observers ``timeout_s`` to finish what is queued, then stop. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        if thread is not None and thread.is_alive():
            try:
                self._queue.put(None, timeout=timeout_s)
                thread.join(timeout_s)
            except queue.Full:
                pass  # an observer hangs: leave it to the daemon thread's end
        atexit.unregister(self.close)
        if self._dropped:
            _log.warning("observers lost %d records because they could not keep up", self._dropped)

    def _ensure_running(self) -> None:
        # A fork leaves the child without the thread: not alive there, it is started again.
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="gkt-observers", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._call(*entry)

    def _call(self, observers: tuple[Observer, ...], item: object) -> None:
        for observer in observers:
            try:
                observer.call(item)
            except Exception:  # noqa: BLE001 -- an observer is someone else's code: whatever it raises is logged
                _log.exception("%s raised; the request is not affected", observer.label)
