"""A ledger in memory, for tests of drivers: what was opened and closed, in order, without a database."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from gkt_plugins.contracts import UsageRecord

__all__ = ["Book"]


class Book:
    """Takes a moment for each record, as a ledger on disk does. What is not priced costs 7 nano-units."""

    def __init__(self) -> None:
        self.events: list[tuple[str, UsageRecord]] = []
        """("opened" | "closed", record), in order."""

    async def opened(self, record: UsageRecord) -> None:
        self.events.append(("opened", record))
        await asyncio.sleep(0)

    async def closed(self, record: UsageRecord) -> UsageRecord:
        self.events.append(("closed", record))
        await asyncio.sleep(0)
        return replace(record, cost_nano=7) if record.cost_nano is None else record

    @property
    def closings(self) -> list[UsageRecord]:
        """Every closed record, unpriced, in order."""
        return [record for what, record in self.events if what == "closed"]

    def statuses(self) -> list[tuple[str, str]]:
        """(role, status) of every closed record."""
        return [(record.role, record.status) for record in self.closings]

    def nothing_is_open(self) -> bool:
        """Every record that was opened was closed, once."""

        def keys(wanted: str) -> list[tuple[str, str, int, int]]:
            return sorted((r.request_id, r.role, r.call, r.attempt) for what, r in self.events if what == wanted)

        opened, closed = keys("opened"), keys("closed")
        return set(opened) <= set(closed) and len(closed) == len(set(closed))
