"""Reading a ledger: a snapshot of the records on disk, also while other processes write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine, inspect, select

from gkt_plugins.accounting._database import connect, sentence
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.accounting.schema import KEY, RECORDS, record_of
from gkt_plugins.contracts import UsageRecord
from gkt_plugins.errors import BackendError

__all__ = ["connect_reader", "read_records", "read_requests"]


def read_records(path: Path, *, since: float | None = None) -> Iterator[UsageRecord]:
    """Records of the ledger file at ``path``, by key, calls of one request side by side. Changes nothing.

    ``since``: only calls started at or after it, in seconds since the epoch.

    :raises BackendError: there is no ledger, or it cannot be read.
    """
    if not path.is_file():
        raise BackendError(f"there is no ledger at {str(path)!r}; run something first, or name another with --url")
    return _read(path, since)


def _read(path: Path, since: float | None) -> Iterator[UsageRecord]:
    engine = connect(path)
    query = select(RECORDS).order_by(*(RECORDS.c[name] for name in KEY))
    if since is not None:
        query = query.where(RECORDS.c.started_at >= since)
    try:
        with sentence(path, "read"), engine.connect().execution_options(reading=True) as connection:
            if not inspect(connection).has_table(RECORDS.name):
                raise BackendError(f"{str(path)!r} is a database without a ledger; name another with --url")
            for row in connection.execution_options(yield_per=1000).execute(query):
                yield record_of(row)
    finally:
        engine.dispose()


def connect_reader(url: str, base_dir: Path | None = None) -> Engine:
    """A database engine to read the ledger at ``url`` with; it cannot write. ``.dispose()`` it when done.

    Tables: ``RECORDS`` and ``REQUESTS`` of ``gkt_plugins.accounting.schema``. Safe from any thread.

    :raises ConfigError: not the URL of a ledger.
    :raises BackendError: there is no ledger, or one of another version.
    """
    raise NotImplementedError


def read_requests(
    ledger: str | Path, *, since: float | None = None, until: float | None = None
) -> Iterator[RequestRecord]:
    """Requests of the ledger (a URL, or an SQLite file), in the order of their start.

    ``since``, ``until``: only those started at or after, and before it, in seconds since the epoch.

    :raises BackendError: there is no ledger, or it cannot be read.
    """
    raise NotImplementedError
