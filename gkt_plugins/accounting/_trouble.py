"""A database's or a disk's complaint as one sentence that says what to do, and never holds a password."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gkt_plugins.accounting.location import Location
from gkt_plugins.errors import BackendError

__all__ = ["sentence"]

_ADVICE = (
    (("full", "no space"), "free some disk space"),
    (("locked", "lock timeout"), "another program holds it; end it"),
    (("not a database", "malformed"), "name another file in ledger.url"),
    (("no such file", "not a directory"), "create its folder, or name another file in ledger.url"),
    (("password", "authentication"), "check the user and the password in the variable that ledger.url_env names"),
    (("connection refused", "could not translate", "timeout expired", "closed", "terminat"), "start the database"),
)
_SQLITE_ADVICE = "check that the file and its folder can be written, or name another file in ledger.url"
_POSTGRESQL_ADVICE = "check that the database of ledger.url exists and that its user may create and write tables"


@contextlib.contextmanager
def sentence(location: Location, doing: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn ``errors``, and those of SQLAlchemy, SQLite and the disk, into one :class:`BackendError`."""
    expected: tuple[type[Exception], ...] = (SQLAlchemyError, sqlite3.Error, OSError, *errors)
    try:
        yield
    except expected as exc:
        cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
        text = " ".join(str(cause).split()) or repr(cause)
        raise BackendError(
            f"the ledger {str(location)!r} could not be {doing}: {text}; {_advice(text, location)}"
        ) from exc


def _advice(text: str, location: Location) -> str:
    text = text.lower()
    for signs, advice in _ADVICE:
        if any(sign in text for sign in signs):
            return advice
    return _SQLITE_ADVICE if location.path is not None else _POSTGRESQL_ADVICE
