"""The ledger in an SQLite file: a write-ahead log, and one statement for many rows."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event

from gkt_plugins.accounting._checkpoints import Checkpoints
from gkt_plugins.accounting._migrate import migrate
from gkt_plugins.accounting._rows import Row
from gkt_plugins.accounting._store import Group, Result, Store
from gkt_plugins.accounting._writers import Writer, is_alive, only_one, remove_dead
from gkt_plugins.accounting.location import Sync

__all__ = ["SQLiteStore", "sqlite_engine"]

_BUSY_TIMEOUT_S = 30.0
"""How long to wait for another process's commit, which takes milliseconds."""

_LONG_LOG = 16384
"""Pages (64 MiB) of write-ahead log at which the writer itself makes a checkpoint: while commits never pause, those of
the background thread never get to the end, and the log would grow for ever."""

_CHUNKS = (256, 64, 16, 4, 1)
"""Rows of one INSERT: few sizes, so that each is compiled once and kept. Those that an SQLite with a low limit of
parameters cannot take are left out."""


def sqlite_engine(path: Path, *, read_only: bool = False) -> Engine:
    """An SQLAlchemy engine whose transactions start as it says, not as Python's driver guesses.

    A reader sees one unmoving snapshot, cannot write, and blocks nobody.
    """
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": _BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None
        if read_only:
            connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


class SQLiteStore(Store):
    """One file, shared by the processes of one machine."""

    def __init__(self, path: Path, sync: Sync) -> None:
        """Open or make the file at ``path``, bring its tables up to date, and recover it."""
        self._folder = path.with_name(path.name + ".writers")
        with only_one(self._folder):
            self.connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
                # Either way a commit is in the kernel's hands, and survives this process.
                self.execute(f"PRAGMA synchronous = {'FULL' if sync == 'commit' else 'NORMAL'}")
                self.execute(f"PRAGMA wal_autocheckpoint = {_LONG_LOG}")
                engine = sqlite_engine(path)
                try:
                    migrate(engine)
                finally:
                    engine.dispose()
                self.recovered = self.recover()
                remove_dead(self._folder)
                self._mark = Writer(self._folder)
                self._checkpoints = Checkpoints(path)
            except BaseException:
                self.connection.close()
                raise
        self.writer = self._mark.id

    def write(self, group: Group) -> list[Result]:
        results = super().write(group)
        self._checkpoints.committed()
        return results

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self.connection.execute(sql, parameters)

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self.connection.executemany(sql, rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")  # so that a read followed by a write never fails half-way
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:  # some errors, such as a full disk, have ended it already
                self.connection.execute("ROLLBACK")
            raise

    def insert(self, table: Table, rows: Sequence[Row], conflict: str) -> int:
        most = self.connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(table.columns)
        chunks = [size for size in _CHUNKS if size <= most]
        if len(rows) not in chunks and not self.connection.in_transaction:
            with self.transaction():
                return self.insert(table, rows, conflict)
        written, start = 0, 0
        for size in chunks:
            while len(rows) - start >= size:
                chunk = chain.from_iterable(rows[start : start + size])
                written += self.execute(_insert(table, size) + conflict, tuple(chunk)).rowcount
                start += size
        return written

    def is_alive(self, writer: str) -> bool:
        return is_alive(self._folder, writer)

    def among(self, column: str) -> str:
        return f"{column} IN (SELECT value FROM json_each(?))"

    def close(self) -> None:
        self._checkpoints.stop()
        self._mark.release()
        self.connection.close()


@functools.cache
def _insert(table: Table, rows: int) -> str:
    row = f"({', '.join('?' * len(table.columns))})"
    return f"INSERT INTO {table.name} ({', '.join(table.columns.keys())}) VALUES {', '.join([row] * rows)}"
