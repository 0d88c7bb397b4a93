"""Where a ledger is kept: SQLite files for now, named by a database URL."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from gkt_plugins.errors import ConfigError

__all__ = ["ledger_path"]


def ledger_path(url: str, base_dir: Path | None = None) -> Path:
    """The file that ``url`` names; a relative one starts at ``base_dir`` (default: the working directory).

    :raises ConfigError: not the URL of an SQLite file.
    """
    try:
        parsed: URL = make_url(url)
    except ArgumentError as exc:
        raise ConfigError(f'ledger.url must be a database URL such as "sqlite:///gkt.db", got {url!r}') from exc
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ConfigError(
            f'ledger.url must name an SQLite file, such as "sqlite:///gkt.db"; this version keeps no ledger in '
            f"{parsed.get_backend_name()!r}"
        )
    if parsed.host or parsed.query or not parsed.database or parsed.database.startswith((":memory:", "file:")):
        raise ConfigError(
            f'ledger.url must name an SQLite file that outlives the process, such as "sqlite:///gkt.db", got {url!r}'
        )
    return (base_dir or Path()) / parsed.database
