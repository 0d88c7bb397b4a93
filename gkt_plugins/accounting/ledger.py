"""The two-phase ledger: every call is ``open`` on disk before its first byte goes out, and closed before its last.

What a client received is therefore in the ledger, also after ``kill -9``: a call whose process died is found on the
next opening, and marked ``interrupted`` and estimated. One writer thread commits whatever waits in one transaction (a
group commit); callers await the durability of their own record only.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, and_, bindparam, insert, select, update

from gkt_plugins.accounting._database import connect, sentence
from gkt_plugins.accounting._writers import Writer, is_alive, only_one, remove_dead
from gkt_plugins.accounting.budgets import Budget
from gkt_plugins.accounting.location import ledger_path
from gkt_plugins.accounting.records import read_records
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.accounting.schema import KEY, METADATA, RECORDS, row_of
from gkt_plugins.contracts import UsageRecord
from gkt_plugins.errors import BackendError

__all__ = ["Ledger"]

_log = logging.getLogger(__name__)

_GROUP = 512
"""Most records of one commit."""

_SAME_KEY = and_(*(RECORDS.c[name] == bindparam(f"key_{name}") for name in KEY))
_FIND = select(RECORDS.c.status, RECORDS.c.started_at).where(_SAME_KEY)
_INSERT = insert(RECORDS)
_CLOSE = update(RECORDS).where(_SAME_KEY)


class _Waiting(NamedTuple):
    row: dict[str, Any]
    done: Future[None]


class Ledger:
    """Usage records on disk. Safe from any thread and event loop, and from several processes on one file."""

    @classmethod
    def open(cls, url: str, *, base_dir: Path | None = None) -> Ledger:
        """Open the ledger at ``url`` (``sqlite:///PATH``), make it where there is none, and recover it.

        A relative path starts at ``base_dir``, by default the working directory.

        :raises ConfigError: not the URL of an SQLite file.
        :raises BackendError: the file or its folder cannot be used.
        """
        return cls(ledger_path(url, base_dir))

    def __init__(self, path: Path) -> None:
        """Prefer :meth:`open`. ``path``: the SQLite file."""
        self.path = path
        self._folder = path.with_name(path.name + ".writers")
        self._engine = connect(path)
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        with sentence(path, "opened"), only_one(self._folder):
            _make(self._engine)
            self.recovered = _recover(self._engine, self._folder)
            """How many orphans of dead processes the opening marked."""
            self._writer = Writer(self._folder)
        self._thread = threading.Thread(target=self._write_all, name="gkt-ledger", daemon=True)
        self._thread.start()

    async def opened(self, record: UsageRecord) -> None:
        """Put an ``open`` record on disk; returns once it is durable. Call it before the request goes out.

        A replay changes nothing, nor does an opening that arrives after its closing.

        :raises BackendError: the ledger cannot be written, or the key belongs to another call.
        :raises ValueError: the record is not ``open``, or has no ``started_at``.
        """
        if record.status != "open":
            raise ValueError(f"an opening record has status 'open', got {record.status!r}")
        await asyncio.wrap_future(self._submit(record))

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
        await asyncio.wrap_future(self._submit(record))

    async def request(self, record: RequestRecord) -> None:
        """Put what became of a client's request on disk; returns once it is durable. Replays change nothing.

        :raises BackendError: the ledger cannot be written.
        :raises ValueError: a record that could not be given back as it was.
        """
        raise NotImplementedError

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
        raise NotImplementedError

    async def settle(self, reservation_id: str, spent_nano: int | None) -> None:
        """Replace a reservation by what was spent; unknown (None) counts as all that was reserved.

        Settling twice, or what nobody reserved, changes nothing.

        :raises BackendError: the ledger cannot be written.
        """
        raise NotImplementedError

    async def room(self, budgets: Sequence[Budget], day: str) -> int:
        """The least that any of ``budgets`` (at least one) has left on ``day``, in nano-units, at least 0.

        :raises BackendError: the ledger cannot be read.
        """
        raise NotImplementedError

    def records(self, *, since: float | None = None) -> Iterator[UsageRecord]:
        """Every record on disk, by key; only calls started at or after ``since`` (seconds since the epoch)."""
        return read_records(self.path, since=since)

    async def aclose(self) -> None:
        """Write what waits, mark this ledger's calls that are still open as ``interrupted``, and let go of the file.

        Safe to call twice.

        :raises BackendError: those calls could not be marked; the next opening will.
        """
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """:meth:`aclose` for code without an event loop."""
        with self._gate:
            first, self._closed = not self._closed, True
            if first:
                self._queue.put(None)
        self._thread.join()
        if not first:
            return
        try:
            with sentence(self.path, "closed"), self._engine.begin() as connection:
                _interrupt(connection, [self._writer.id])
        finally:
            self._writer.release()
            self._engine.dispose()

    def _submit(self, record: UsageRecord) -> Future[None]:
        waiting = _Waiting(row_of(record, self._writer.id), Future())
        waiting.done.set_running_or_notify_cancel()  # a record handed over is written, whoever stops waiting for it
        with self._gate:
            if self._closed:
                raise BackendError(f"the ledger {str(self.path)!r} is closed; open it again to write")
            self._queue.put(waiting)
        return waiting.done

    def _write_all(self) -> None:
        """The writer thread: commit what has gathered while the last commit ran."""
        more = True
        while more:
            group: list[_Waiting] = []
            try:
                item = self._queue.get()
                while item is not None:
                    group.append(item)
                    if len(group) == _GROUP:
                        break
                    item = self._queue.get_nowait()
                more = item is not None
            except queue.Empty:
                pass
            if group:
                self._commit(group)

    def _commit(self, group: Sequence[_Waiting]) -> None:
        try:
            with sentence(self.path, "written"), self._engine.begin() as connection:
                refusals = [_write(connection, waiting.row) for waiting in group]
        except Exception as exc:  # noqa: BLE001 - it belongs to the callers who wait, and this thread must live on
            for waiting in group:
                waiting.done.set_exception(exc)
            return
        for waiting, refusal in zip(group, refusals, strict=True):
            if refusal is None:
                waiting.done.set_result(None)
            else:
                waiting.done.set_exception(BackendError(refusal))


def _make(engine: Engine) -> None:
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
    finally:
        raw.close()
    with engine.begin() as connection:
        METADATA.create_all(connection)


def _write(connection: Connection, row: dict[str, Any]) -> str | None:
    """Apply one record inside the running transaction; a sentence when its key is another call's."""
    key = {f"key_{name}": row[name] for name in KEY}
    found = connection.execute(_FIND, key).one_or_none()
    if found is None:
        connection.execute(_INSERT, row)
        return None
    if found.started_at != row["started_at"]:
        return (
            f"the ledger already has another call {row['request_id']!r}, {row['role']} {row['call']}, attempt "
            f"{row['attempt']}, begun at {found.started_at}; give every request its own id and every retry its attempt"
        )
    if row["status"] != "open" and found.status in ("open", "interrupted"):
        connection.execute(_CLOSE, key | {name: value for name, value in row.items() if name not in KEY})
    return None


def _recover(engine: Engine, folder: Path) -> int:
    """Mark the open rows of writers that are gone; rows of living ones are theirs. Returns how many."""
    with engine.begin() as connection:
        owners = connection.scalars(select(RECORDS.c.writer).where(RECORDS.c.status == "open").distinct()).all()
        marked = _interrupt(connection, [owner for owner in owners if not is_alive(folder, owner)])
    remove_dead(folder)
    if marked:
        _log.warning("%d calls were cut off when their process ended; marked interrupted, estimated", marked)
    return marked


def _interrupt(connection: Connection, writers: Sequence[str]) -> int:
    """What is known of such a call is what was known when it began, so it is an estimate; an unknown cost stays so."""
    orphans = and_(RECORDS.c.status == "open", RECORDS.c.writer.in_(writers))
    return connection.execute(update(RECORDS).where(orphans).values(status="interrupted", estimated=True)).rowcount
