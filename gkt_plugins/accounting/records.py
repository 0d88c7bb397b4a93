"""Reading a ledger: a snapshot of what is on disk, also while other processes write. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, Row, Select, Table, select

from gkt_plugins.accounting._migrate import HEAD, version
from gkt_plugins.accounting._rows import record_of, request_of
from gkt_plugins.accounting._trouble import sentence
from gkt_plugins.accounting.location import Location
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.accounting.schema import KEY, RECORDS, REQUESTS
from gkt_plugins.contracts import UsageRecord
from gkt_plugins.errors import BackendError

__all__ = ["connect_reader", "ledger_version", "read_records", "read_requests"]

Read = TypeVar("Read")


def connect_reader(ledger: str | Path | Location, base_dir: Path | None = None) -> Engine:
    """A database engine to read the ledger with (a URL, or an SQLite file); it cannot write. Dispose of it when done.

    The tables are ``RECORDS`` and ``REQUESTS`` of :mod:`gkt_plugins.accounting.schema`; a connection's transaction sees
    one unmoving snapshot. Safe from any thread.

    :param base_dir: where a relative path in a URL starts; by default the working directory.
    :raises ConfigError: not the URL of a ledger.
    :raises BackendError: there is no ledger, or one of another version.
    """
    location = Location.of(ledger, base_dir)
    found = ledger_version(location)
    if found == HEAD:
        return _engine(location)
    upgrade = "run gkt ledger recover, which upgrades it" if found < HEAD else "upgrade gkt-plugins"
    raise BackendError(f"the ledger {str(location)!r} must be of version {HEAD} to be read, is of {found}; {upgrade}")


def ledger_version(location: Location) -> str:
    """Which version of this package's tables the ledger has.

    :raises BackendError: there is no ledger, or it cannot be read.
    """
    if location.path is not None and not location.path.is_file():
        raise BackendError(f"there is no ledger at {str(location)!r}; run something first, or name another with --url")
    engine = _engine(location)
    try:
        with sentence(location, "read"), engine.connect() as connection:
            found = version(connection)
    finally:
        engine.dispose()
    if found is None:
        raise BackendError(f"{str(location)!r} is a database without a ledger; name another with --url")
    return found


def read_records(
    ledger: str | Path | Location,
    *,
    since: float | None = None,
    until: float | None = None,
    base_dir: Path | None = None,
) -> Iterator[UsageRecord]:
    """Records of the ledger (a URL, or an SQLite file), by key, so that calls of one request are side by side.

    ``since``, ``until``: only calls started at or after, and before it, in seconds since the epoch.

    :raises BackendError: there is no ledger, or it cannot be read.
    """
    location = Location.of(ledger, base_dir)
    query = _between(select(RECORDS), RECORDS, since, until).order_by(*(RECORDS.c[name] for name in KEY))
    return _read(connect_reader(location), location, query, record_of)


def read_requests(
    ledger: str | Path | Location,
    *,
    since: float | None = None,
    until: float | None = None,
    base_dir: Path | None = None,
) -> Iterator[RequestRecord]:
    """Requests of the ledger, in the order of their start; arguments and errors as :func:`read_records`."""
    location = Location.of(ledger, base_dir)
    query = _between(select(REQUESTS), REQUESTS, since, until).order_by(REQUESTS.c.started_at, REQUESTS.c.request_id)
    return _read(connect_reader(location), location, query, request_of)


def _between(query: Select[Any], table: Table, since: float | None, until: float | None) -> Select[Any]:
    if since is not None:
        query = query.where(table.c.started_at >= since)
    if until is not None:
        query = query.where(table.c.started_at < until)
    return query


def _read(
    engine: Engine, location: Location, query: Select[Any], made_of: Callable[[Row[Any]], Read]
) -> Iterator[Read]:
    try:
        with sentence(location, "read"), engine.connect() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query):
                yield made_of(row)
    finally:
        engine.dispose()


def _engine(location: Location) -> Engine:
    if location.path is not None:
        from gkt_plugins.accounting._sqlite import sqlite_engine

        return sqlite_engine(location.path, read_only=True)
    from gkt_plugins.accounting._postgresql import postgresql_engine

    return postgresql_engine(location, read_only=True)
