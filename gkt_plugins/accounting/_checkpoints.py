"""Brings what was committed to the disk, a second later and on a thread of its own, so that no call waits for it."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path

__all__ = ["Checkpoints"]

_log = logging.getLogger(__name__)

_EVERY_S = 1.0


class Checkpoints:
    """Empties an SQLite file's write-ahead log into the file while others read and write it.

    A checkpoint syncs the log first: what was committed before it survives a power cut after it.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._committed = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gkt-ledger-sync", daemon=True)
        self._thread.start()

    def committed(self) -> None:
        """Say that there is something to bring to the disk."""
        self._committed.set()

    def stop(self) -> None:
        """End the thread. Safe to call twice."""
        self._stopped.set()
        self._committed.set()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        failing = False
        while True:
            self._committed.wait()  # nothing to do, nothing done: an idle ledger wakes nobody
            if self._stopped.wait(_EVERY_S):
                return  # closing the last connection is a checkpoint too
            self._committed.clear()
            try:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                failing = False
            except sqlite3.Error as exc:
                if not failing:
                    _log.warning("what was committed to the ledger is not on the disk yet: %s; it is tried again", exc)
                failing = True
                self._committed.set()
