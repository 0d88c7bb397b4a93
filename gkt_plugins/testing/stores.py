"""A guidance store in memory that fails, hangs or lies as it is told, for tests of what must not depend on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

__all__ = ["MemoryStore"]


class MemoryStore:
    """Set ``fails`` or ``hangs``, or write what you like into ``values``."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.fails = False
        self.hangs = False
        self.asked = 0
        """Calls, failed ones too."""
        self.closed = False

    async def get(self, key: str) -> bytes | None:
        await self._misbehave()
        return self.values.get(key)

    async def put(self, values: Mapping[str, bytes], max_age_s: int | None) -> None:
        await self._misbehave()
        self.values |= values

    async def aclose(self) -> None:
        self.closed = True

    async def _misbehave(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails:
            raise ConnectionRefusedError("nobody listens")
