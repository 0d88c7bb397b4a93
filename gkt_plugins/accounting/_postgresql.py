"""The ledger in a PostgreSQL database, for gateways on several machines.

A writer holds a session-level advisory lock, which the server lets go of when the writer's connection ends, however it
ends: so a held lock means a live writer.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, Table, create_engine
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from gkt_plugins.accounting._migrate import migrate
from gkt_plugins.accounting._rows import Row
from gkt_plugins.accounting._store import Group, Result, Store
from gkt_plugins.accounting.location import Location, Sync
from gkt_plugins.errors import require

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgreSQLStore", "postgresql_engine"]

_DOOR = 0x676B745F646F6F72
"""The advisory lock behind which a ledger is opened and recovered, one process at a time: "gkt_door" in ASCII."""

_CONNECT_TIMEOUT_S = 10
_DEADLOCK = "40P01"
_TRIES = 5
_PAUSE_S = 0.2
"""At most, before a group that met a deadlock, or a cut connection, is written again."""
_LOCK_TIMEOUT = "30s"
"""How long to wait for another process's commit, which takes milliseconds."""


def postgresql_engine(location: Location, *, read_only: bool = False) -> Engine:
    """An SQLAlchemy engine on the database; a reader's transactions see one snapshot and cannot write."""
    require("psycopg", extra="postgresql")
    assert location.url is not None
    options = {"options": "-c default_transaction_read_only=on -c default_transaction_isolation=repeatable\\ read"}
    return create_engine(
        location.url.set(drivername="postgresql+psycopg"),
        connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, **(options if read_only else {})},
        pool_pre_ping=True,
    )


class PostgreSQLStore(Store):
    """One database, shared by any number of processes."""

    LOCKING = " FOR UPDATE"

    def __init__(self, location: Location, sync: Sync) -> None:
        """Connect, bring the tables up to date, and recover the ledger."""
        assert location.url is not None
        self._psycopg: Any = require("psycopg", extra="postgresql")
        self.errors = (self._psycopg.Error,)
        self._location = location
        self._sync = sync
        self.writer = uuid.uuid4().hex
        self.connection = self._connect()
        try:
            self.execute("SELECT pg_advisory_lock(?)", (_DOOR,))
            engine = postgresql_engine(location)
            try:
                migrate(engine)
            finally:
                engine.dispose()
            self.recovered = self.recover()
            self.execute("SELECT pg_advisory_unlock(?)", (_DOOR,))
        except BaseException:
            self.connection.close()
            raise

    def write(self, group: Group) -> list[Result]:
        again = Retrying(
            retry=retry_if_exception(self._may_pass),
            stop=stop_after_attempt(_TRIES),
            wait=wait_random(max=_PAUSE_S),  # or the two that waited for each other meet again
            reraise=True,
        )
        return again(super().write, group)  # whatever is applied twice counts once

    def _may_pass(self, exc: BaseException) -> bool:
        """Whether the same group may be written now."""
        if not isinstance(exc, self._psycopg.OperationalError):
            return False
        if self.connection.closed:
            self.connection = self._connect()  # the server was restarted, or an idle connection cut
            return True
        return bool(exc.sqlstate == _DEADLOCK)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        return self.connection.execute(sql.replace("?", "%s"), parameters)

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self.connection.cursor() as cursor:
            cursor.executemany(sql.replace("?", "%s"), rows)

    def transaction(self) -> AbstractContextManager[Any]:
        return self.connection.transaction()

    def insert(self, table: Table, rows: Sequence[Row], conflict: str) -> int:
        """All rows as one JSON document, because the server reads that in one statement, prepared once."""
        columns = tuple(table.columns.keys())
        key = len(table.primary_key)
        waves: list[list[dict[str, Any]]] = []
        nth: Counter[Row] = Counter()
        for row in rows:
            wave = nth[row[:key]]  # one statement cannot touch a row twice, as an opening and its closing would
            nth[row[:key]] += 1
            if wave == len(waves):
                waves.append([])
            waves[wave].append(dict(zip(columns, row, strict=True)))
        names = ", ".join(columns)
        read = f"SELECT {names} FROM json_populate_recordset(NULL::{table.name}, ?)"
        statement = f"INSERT INTO {table.name} ({names}) {read}{conflict}"
        with self.transaction() if len(waves) > 1 else contextlib.nullcontext():
            return sum(self.execute(statement, (json.dumps(wave),)).rowcount for wave in waves)

    def is_alive(self, writer: str) -> bool:
        [free] = self.execute("SELECT pg_try_advisory_lock(?)", (_lock(writer),)).fetchone()
        if free:
            self.execute("SELECT pg_advisory_unlock(?)", (_lock(writer),))
        return not free

    def among(self, column: str) -> str:
        return f"{column} IN (SELECT json_array_elements_text(?))"

    def close(self) -> None:
        self.connection.close()

    def _connect(self) -> psycopg.Connection[Any]:
        assert self._location.url is not None
        connection: psycopg.Connection[Any] = self._psycopg.connect(
            self._location.url.render_as_string(hide_password=False),
            autocommit=True,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="gkt-ledger",
        )
        connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
        connection.execute(f"SET synchronous_commit = {'on' if self._sync == 'commit' else 'off'}")
        # Shared: when the connection is made anew, the server may not have noticed yet that the old one is gone.
        connection.execute("SELECT pg_advisory_lock_shared(%s)", (_lock(self.writer),))
        return connection


def _lock(writer: str) -> int:
    """The advisory lock of a writer: 64 bits of its random name."""
    return int.from_bytes(bytes.fromhex(writer[:16]), signed=True)
