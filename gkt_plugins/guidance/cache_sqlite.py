"""Guidance in an SQLite file, for one machine: several processes may share it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

__all__ = ["SqliteStore"]

T = TypeVar("T")

_BUSY_S = 2.0
"""How long a write waits for another process's."""


class SqliteStore:
    """One connection on a thread of its own, opened when it is first needed, and again after an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gkt-cache")
        self._connection: sqlite3.Connection | None = None

    async def get(self, key: str) -> bytes | None:
        def read(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute("SELECT value FROM guidance WHERE key = ?", (key,)).fetchone()
            return None if row is None else bytes(row[0])

        return await self._work(read)

    async def put(self, values: Mapping[str, bytes], max_age_s: int | None) -> None:
        now = time.time()

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                if max_age_s is not None:
                    connection.execute("DELETE FROM guidance WHERE made_at < ?", (now - max_age_s,))
                connection.executemany(
                    "INSERT OR REPLACE INTO guidance VALUES (?, ?, ?)",
                    [(key, value, now) for key, value in values.items()],
                )

        await self._work(write)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._close)

    async def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._connected, work)

    def _connected(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = _connect(self._path)
            return work(self._connection)
        except sqlite3.Error:
            self._disconnect()  # the file may have been replaced, or be there next time
            raise

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _close(self) -> None:
        with suppress(RuntimeError):  # closed already
            self._thread.submit(self._disconnect)
        self._thread.shutdown()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
        connection.execute("PRAGMA synchronous = NORMAL")  # a power failure may cost the last entries, which come again
        connection.execute(
            "CREATE TABLE IF NOT EXISTS guidance (key TEXT PRIMARY KEY, value BLOB NOT NULL, made_at REAL NOT NULL)"
            " WITHOUT ROWID"
        )
        connection.execute("CREATE INDEX IF NOT EXISTS guidance_made_at ON guidance (made_at)")
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection
