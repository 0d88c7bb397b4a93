"""Where a ledger is kept: an SQLite file or a PostgreSQL database, named by a URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from gkt_plugins.errors import ConfigError

__all__ = ["Location", "Sync"]

Sync: TypeAlias = Literal["second", "commit"]
"""What a power cut may cost: the last second, or nothing, for which every commit waits until the disk has it."""

_SQLITE = ("sqlite", "sqlite+pysqlite")
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")


@dataclass(frozen=True, slots=True)
class Location:
    """An SQLite file, or a PostgreSQL database; one of the two is set."""

    path: Path | None = None
    url: URL | None = field(default=None, repr=False)
    """Holds the password: never to be shown, and left out of what is printed."""

    def __str__(self) -> str:
        """For people: the file, or the URL without its password."""
        if self.url is None:
            return str(self.path)
        return self.url.difference_update_query(["password"]).render_as_string(hide_password=True)

    @classmethod
    def of(cls, ledger: str | Path | Location, base_dir: Path | None = None) -> Location:
        """The place that a URL, or the path of an SQLite file, names.

        A relative path in a URL starts at ``base_dir`` (default: the working directory).

        :raises ConfigError: a URL that names neither an SQLite file nor a PostgreSQL database.
        """
        if isinstance(ledger, Location):
            return ledger
        if isinstance(ledger, Path):
            return cls(path=ledger)
        try:
            parsed = make_url(ledger)
        except (ArgumentError, ValueError) as exc:  # ValueError: a port that is no number
            raise ConfigError(
                'ledger.url must be a database URL such as "sqlite:///gkt.db" or "postgresql://host/gkt", '
                f"and what came is none; its beginning is {ledger[:8]!r}"
            ) from exc
        if parsed.drivername in _POSTGRESQL:
            return cls(url=parsed.set(drivername="postgresql"))
        if parsed.drivername not in _SQLITE:
            raise ConfigError(
                'ledger.url must name an SQLite file or a PostgreSQL database, such as "sqlite:///gkt.db" or '
                f'"postgresql://host/gkt"; no ledger is kept in {parsed.get_backend_name()!r}'
            )
        file = parsed.database
        if parsed.host or parsed.query or not file or file.startswith((":memory:", "file:")):
            raise ConfigError(
                'ledger.url must name an SQLite file that outlives the process, such as "sqlite:///gkt.db", '
                f"got {ledger!r}"
            )
        return cls(path=(base_dir or Path()) / file)
