"""SQLite as the ledger uses it: WAL, durable commits, honest transactions, errors in one sentence."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gkt_plugins.errors import BackendError

__all__ = ["connect", "sentence"]

_BUSY_TIMEOUT_S = 30.0
"""How long to wait for another process's commit, which takes milliseconds."""


def connect(path: Path) -> Engine:
    """An engine whose transactions start as SQLAlchemy says, not as Python's driver guesses.

    Writers take the write lock at once (``BEGIN IMMEDIATE``), so that a read followed by a write never fails half-way;
    a connection with the execution option ``reading`` sees one unmoving snapshot and blocks nobody.
    """
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": _BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, not only a dead process

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


@contextlib.contextmanager
def sentence(path: Path, doing: str) -> Iterator[None]:
    """Turn a database's or a disk's complaint into one :class:`BackendError` that says what to do."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as exc:
        cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
        raise BackendError(f"the ledger {str(path)!r} could not be {doing}: {cause}; {_advice(str(cause))}") from exc


def _advice(cause: str) -> str:
    cause = cause.lower()
    if "full" in cause or "no space" in cause:
        return "free some disk space"
    if "locked" in cause:
        return "another program holds the file; end it"
    if "not a database" in cause or "malformed" in cause:
        return "name another file in ledger.url"
    if "no such file" in cause or "not a directory" in cause:
        return "create its folder, or name another file in ledger.url"
    return "check that the file and its folder can be written, or name another file in ledger.url"
