"""Brings a ledger's tables up to date, whatever version of this package made them."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from gkt_plugins.accounting.schema import RECORDS
from gkt_plugins.errors import BackendError

__all__ = ["HEAD", "migrate", "version"]

HEAD = "0002"
"""The newest step in ``migrations/versions``, and the only version that this code reads and writes."""

_FIRST = "0001"
"""What a ledger is that was made before its version was written into it."""


def version(connection: Connection) -> str | None:
    """The version of the ledger; None where there is none."""
    found = inspect(connection)
    if found.has_table("alembic_version"):
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")))
    return _FIRST if found.has_table(RECORDS.name) else None


def migrate(engine: Engine) -> None:
    """Make the tables, or change older ones, in one transaction. One process at a time: the caller sees to it.

    :raises BackendError: a newer version of this package made the ledger.
    """
    with engine.begin() as connection:
        at = version(connection)
        if at == HEAD:
            return
        if at is not None and at > HEAD:
            raise BackendError(
                f"the ledger is of version {at} and this gkt-plugins knows versions up to {HEAD}; upgrade gkt-plugins"
            )
        from alembic import command  # loads slowly, and is needed once in the life of a ledger
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        config.attributes["connection"] = connection
        if at == _FIRST and not inspect(connection).has_table("alembic_version"):
            command.stamp(config, _FIRST)
        command.upgrade(config, HEAD)
