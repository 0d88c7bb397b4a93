"""The two-phase ledger: every call is ``open`` on disk before its first byte goes out, and closed before its last.

What a client received is therefore in the ledger, also after ``kill -9``: a call whose process died is found on the
next opening, and marked ``interrupted`` and estimated. One writer thread commits whatever waits in one transaction (a
group commit); callers await the durability of their own record only.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from gkt_plugins.accounting._reservations import Reserve, Room, Settle, check_reserve, check_settle
from gkt_plugins.accounting._rows import call_row, request_row
from gkt_plugins.accounting._store import Group, Result, Store
from gkt_plugins.accounting._trouble import sentence
from gkt_plugins.accounting._writing import WriterThread
from gkt_plugins.accounting.budgets import Budget
from gkt_plugins.accounting.location import Location, Sync
from gkt_plugins.accounting.records import read_records, read_requests
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import UsageRecord
from gkt_plugins.errors import BackendError, require

__all__ = ["Ledger"]


class Ledger:
    """Usage records on disk. Safe from any event loop, and from several processes on one database."""

    @classmethod
    def open(cls, url: str, *, base_dir: Path | None = None, sync: Sync = "second") -> Ledger:
        """Open the ledger at ``url``, make it where there is none, bring its tables up to date, and recover it.

        :param url: ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.
        :param base_dir: where a relative path starts; by default the working directory.
        :param sync: ``second``: a commit survives the end of this process at once, and a power cut a second later.
            ``commit``: a power cut at once too; every commit then waits for the disk.
        :raises ConfigError: a URL of neither kind.
        :raises BackendError: the database cannot be used, or a newer version of this package made it.
        :raises MissingDependencyError: PostgreSQL without its driver.
        """
        return cls(Location.of(url, base_dir), sync)

    def __init__(self, place: Path | Location, sync: Sync = "second") -> None:
        """Prefer :meth:`open`. ``place``: an SQLite file, or where else the ledger is."""
        self.location = Location.of(place)
        self._store = _open(self.location, sync)
        self.recovered = self._store.recovered
        """How many orphans of dead processes the opening marked."""
        self._gate = threading.Lock()
        self._closed = False
        self._thread = WriterThread(self._write)

    async def opened(self, record: UsageRecord) -> None:
        """Put an ``open`` record on disk; returns once it is durable. Call it before the request goes out.

        A replay changes nothing, nor does an opening that arrives after its closing.

        :raises BackendError: the ledger cannot be written, or the key belongs to another call.
        :raises ValueError: the record is not ``open``, or has no ``started_at``.
        """
        if record.status != "open":
            raise ValueError(f"an opening record has status 'open', got {record.status!r}")
        await self._submit("calls", call_row(record, self._store.writer))

    async def closed(self, record: UsageRecord) -> None:
        """Put the outcome of a call on disk; returns once it is durable. Call it before the last byte goes out.

        The first closing counts: replays change nothing. Only what recovery guessed (``interrupted``) gives way to a
        real outcome. After a :class:`BackendError` the same record may be closed again. Cancelling the awaiting task
        does not take the record back.

        :raises BackendError: the ledger cannot be written, or the key belongs to another call.
        :raises ValueError: the record is still ``open``, or has no ``started_at``.
        """
        if record.status == "open":
            raise ValueError("a closing record says how the call ended, got status 'open'")
        await self._submit("calls", call_row(record, self._store.writer))

    async def request(self, record: RequestRecord) -> None:
        """Put what became of a client's request on disk; returns once it is durable. Replays change nothing.

        :raises BackendError: the ledger cannot be written.
        :raises ValueError: a record that could not be given back as it was.
        """
        await self._submit("requests", request_row(record))

    async def reserve(
        self, reservation_id: str, budgets: Sequence[Budget], amount_nano: int, day: str
    ) -> Budget | None:
        """Set ``amount_nano`` aside in every budget, or in none; atomic over all processes that share the ledger.

        :param reservation_id: the request's id, so that recovery finds what a dead process had spent on it.
        :param budgets: all in one currency; none is always granted. A reservation that exists already is granted.
        :param day: UTC, e.g. ``2026-11-22`` (:func:`~gkt_plugins.accounting.budgets.utc_day`).
        :returns: the first budget without room, and nothing is reserved; None when all have it.
        :raises BackendError: the ledger cannot be written.
        """
        check_reserve(budgets, amount_nano)
        if not budgets:
            return None
        operation = Reserve(reservation_id, tuple(budgets), amount_nano, day)
        refused: Budget | None = await self._submit("budgets", operation)
        return refused

    async def settle(self, reservation_id: str, spent_nano: int | None) -> None:
        """Replace a reservation by what was spent; unknown (None) counts as all that was reserved.

        Settling twice, or what nobody reserved, changes nothing.

        :raises BackendError: the ledger cannot be written.
        """
        check_settle(spent_nano)
        await self._submit("budgets", Settle(reservation_id, spent_nano))

    async def room(self, budgets: Sequence[Budget], day: str) -> int:
        """The least that any of ``budgets`` (at least one) has left on ``day``, in nano-units, at least 0.

        :raises BackendError: the ledger cannot be read.
        """
        if not budgets:
            raise ValueError("the room of no budget is endless, expected at least one")
        left: int = await self._submit("budgets", Room(tuple(budgets), day))
        return left

    def records(self, *, since: float | None = None) -> Iterator[UsageRecord]:
        """Every record on disk, by key; only calls started at or after ``since`` (seconds since the epoch)."""
        return read_records(self.location, since=since)

    def requests(self, *, since: float | None = None) -> Iterator[RequestRecord]:
        """Every request on disk, in the order of their start; as :func:`read_requests`."""
        return read_requests(self.location, since=since)

    async def aclose(self) -> None:
        """Write what waits, mark this ledger's calls that are still open as ``interrupted``, release what it had
        reserved, and let go of the database.

        Safe to call twice.

        :raises BackendError: those calls could not be marked; the next opening will.
        """
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """:meth:`aclose` for code without an event loop."""
        with self._gate:
            first, self._closed = not self._closed, True
        if not first:
            return
        self._thread.stop()
        try:
            with sentence(self.location, "closed", *self._store.errors):
                self._store.interrupt([self._store.writer])
        finally:
            self._store.close()

    def _submit(self, kind: Literal["calls", "requests", "budgets"], what: Any) -> asyncio.Future[Any]:
        with self._gate:  # so that nothing is handed over after the thread was told to end
            if self._closed:
                raise BackendError(f"the ledger {str(self.location)!r} is closed; open it again to write")
            return self._thread.submit(kind, what)

    def _write(self, group: Group) -> list[Result]:
        with sentence(self.location, "written", *self._store.errors):
            return self._store.write(group)


def _open(location: Location, sync: Sync) -> Store:
    if location.path is not None:
        from gkt_plugins.accounting._sqlite import SQLiteStore

        with sentence(location, "opened"):
            return SQLiteStore(location.path, sync)
    from gkt_plugins.accounting._postgresql import PostgreSQLStore

    psycopg = require("psycopg", extra="postgresql")
    with sentence(location, "opened", psycopg.Error):
        return PostgreSQLStore(location, sync)
