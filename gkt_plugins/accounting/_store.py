"""What the ledger's writer thread does to a database, whichever it is: one transaction for a group of operations.

SQL is written at the driver's level, one statement for all rows of a kind: while a statement runs, the driver lets go
of the interpreter, so an event loop in the same process goes on.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

from sqlalchemy import Table

from gkt_plugins.accounting._reservations import Books, Day, Operation, Room, Settle, Total, touched
from gkt_plugins.accounting._rows import Row
from gkt_plugins.accounting.schema import KEY, RECORDS, REQUESTS
from gkt_plugins.errors import BackendError

__all__ = ["Group", "Result", "Store"]

_log = logging.getLogger(__name__)

Result: TypeAlias = Any
"""What an operation gives back, or the :class:`BackendError` that is its alone."""

_COLUMNS = tuple(column.name for column in RECORDS.columns)
_KEY = tuple(_COLUMNS.index(name) for name in KEY)
_STARTED_AT = _COLUMNS.index("started_at")
_IS_CALL = " AND ".join(f"{name} = ?" for name in KEY)
_UPSERT_CALLS = (
    f" ON CONFLICT ({', '.join(KEY)}) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in KEY)
    + f" WHERE {RECORDS.name}.started_at = excluded.started_at AND excluded.status <> 'open'"
    + f" AND {RECORDS.name}.status IN ('open', 'interrupted')"
)
"""A replay changes nothing; the first closing counts; what recovery guessed gives way to a real outcome."""
_KEEP_REQUESTS = " ON CONFLICT (request_id) DO NOTHING"


class Group:
    """Operations that share a transaction, by kind, each with its position in the group."""

    __slots__ = ("budgets", "calls", "requests", "size")

    def __init__(self) -> None:
        self.size = 0
        self.calls: list[tuple[int, Row]] = []
        self.requests: list[tuple[int, Row]] = []
        self.budgets: list[tuple[int, Operation]] = []

    def add(self, kind: Literal["calls", "requests", "budgets"], what: Any) -> None:
        """Append a row, or an operation on budgets."""
        getattr(self, kind).append((self.size, what))
        self.size += 1


class Store(ABC):
    """A database behind one connection, used by one thread at a time."""

    LOCKING = ""
    """What a SELECT of totals ends with."""

    errors: tuple[type[Exception], ...] = ()
    """What the driver raises besides SQLite's own errors."""
    recovered: int
    """How many orphans of dead processes the opening marked."""
    writer: str
    """This store's name as an owner of open rows."""

    # ----------------------------------------------------------------------------------------- what a database does

    @abstractmethod
    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Run one statement with ``?`` for parameters; the driver's cursor."""

    @abstractmethod
    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for every row."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Any]:
        """All or nothing; takes a writer's locks at once where the database has only one."""

    @abstractmethod
    def insert(self, table: Table, rows: Sequence[Row], conflict: str) -> int:
        """Insert rows in their order, with an ON CONFLICT clause; how many were inserted or changed."""

    @abstractmethod
    def is_alive(self, writer: str) -> bool:
        """True while the process of that writer lives."""

    @abstractmethod
    def among(self, column: str) -> str:
        """An SQL condition: the column is one of a list, whose JSON is the one parameter."""

    @abstractmethod
    def close(self) -> None:
        """Say that this writer is gone, and let go of the database. Safe to call twice."""

    # -------------------------------------------------------------------------------------------- what the ledger does

    def write(self, group: Group) -> list[Result]:
        """Apply a group, all or nothing; a result for every operation."""
        results: list[Result] = [None] * group.size
        if len(group.calls) == group.size:
            self._write_calls(group.calls, results)  # one statement is a transaction by itself
            return results
        with self.transaction():
            if group.calls:
                self._write_calls(group.calls, results)
            if group.requests:
                rows = [row for _, row in group.requests]
                self.insert(REQUESTS, rows, _KEEP_REQUESTS)
            if group.budgets:  # last, because other processes wait for these totals
                for (position, _), result in zip(group.budgets, self._budgets(group.budgets), strict=True):
                    results[position] = result
        return results

    def recover(self) -> int:
        """Mark the open calls of writers that are gone, and release what they had reserved; returns how many calls."""
        owners = self.execute(
            "SELECT writer FROM usage_records WHERE status = 'open' UNION SELECT writer FROM budget_reservations"
        ).fetchall()
        marked = self.interrupt([owner for (owner,) in owners if not self.is_alive(owner)])
        if marked:
            _log.warning("%d calls were cut off when their process ended; marked interrupted, estimated", marked)
        return marked

    def interrupt(self, writers: Sequence[str]) -> int:
        """Close what ``writers`` left open; returns how many calls.

        What is known of such a call is what was known when it began, so it is an estimate; an unknown cost stays so.
        Of a reservation there stays what the request's finished calls are known to have cost.
        """
        if not writers:
            return 0
        names = json.dumps(list(writers))
        with self.transaction():
            marked = self.execute(
                "UPDATE usage_records SET status = 'interrupted', estimated = TRUE "
                f"WHERE status = 'open' AND {self.among('writer')}",
                (names,),
            ).rowcount
            left = self.execute(
                "SELECT DISTINCT reservation_id, (SELECT SUM(cost_nano) FROM usage_records "
                "WHERE request_id = reservation_id AND usage_records.currency = budget_reservations.currency) "
                f"FROM budget_reservations WHERE {self.among('budget_reservations.writer')}",
                (names,),
            ).fetchall()
            self._budgets([(0, Settle(name, int(spent or 0))) for name, spent in left])
        return int(marked)

    def _write_calls(self, calls: Sequence[tuple[int, Row]], results: list[Result]) -> None:
        rows = [row for _, row in calls]
        if self.insert(RECORDS, rows, _UPSERT_CALLS) == len(rows):
            return  # the usual case: every row was new, or closed an open one
        for position, row in calls:
            found = self.execute(
                f"SELECT started_at FROM {RECORDS.name} WHERE {_IS_CALL}", [row[i] for i in _KEY]
            ).fetchone()
            if found is not None and found[0] != row[_STARTED_AT]:
                request_id, call, role, attempt = (row[i] for i in _KEY)
                results[position] = BackendError(
                    f"the ledger already has another call {request_id!r}, {role} {call}, attempt {attempt}, begun at "
                    f"{found[0]}; give every request its own id and every retry its attempt"
                )

    def _budgets(self, operations: Sequence[tuple[int, Operation]]) -> Iterator[Result]:
        asked = [operation for _, operation in operations]
        held = self._held([operation.reservation_id for operation in asked if not isinstance(operation, Room)])
        books = Books(self._totals(touched(asked, held)), held)
        results = [books.apply(operation) for operation in asked]
        self._write_books(books)
        return iter(results)

    def _held(self, names: Sequence[str]) -> dict[str, dict[Day, int]]:
        held: dict[str, dict[Day, int]] = {}
        if names:
            found = self.execute(
                "SELECT reservation_id, scope, currency, day, amount_nano FROM budget_reservations "
                f"WHERE {self.among('reservation_id')}",
                (json.dumps(names),),
            )
            for name, scope, currency, day, amount in found.fetchall():
                held.setdefault(name, {})[Day(scope, currency, day)] = amount
        return held

    def _totals(self, days: Sequence[Day]) -> dict[Day, Total]:
        """The totals, locked until the transaction ends; always in the same order, so that no two processes wait for
        each other."""
        totals: dict[Day, Total] = {}
        self.execute_many(
            "INSERT INTO budget_days (scope, currency, day, spent_nano, reserved_nano) VALUES (?, ?, ?, 0, 0) "
            "ON CONFLICT DO NOTHING",
            days,
        )
        for day in days:
            [spent, reserved] = self.execute(
                "SELECT spent_nano, reserved_nano FROM budget_days WHERE scope = ? AND currency = ? AND day = ?"
                + self.LOCKING,
                day,
            ).fetchone()
            totals[day] = Total(spent, reserved)
        return totals

    def _write_books(self, books: Books) -> None:
        self.execute_many(
            "UPDATE budget_days SET spent_nano = ?, reserved_nano = ? WHERE scope = ? AND currency = ? AND day = ?",
            [(total.spent, total.reserved, *day) for day, total in books.changed.items()],
        )
        if books.gone:
            self.execute(
                f"DELETE FROM budget_reservations WHERE {self.among('reservation_id')}", (json.dumps(books.gone),)
            )
        self.execute_many(
            "INSERT INTO budget_reservations (reservation_id, scope, currency, day, amount_nano, writer) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [(name, *day, amount, self.writer) for name, held in books.made.items() for day, amount in held.items()],
        )
