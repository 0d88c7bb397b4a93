"""Notices that ``gkt.toml`` is no longer what a server goes by. The server goes on as it began."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from gkt_plugins.gateway.asides import beside
from gkt_vllm.frozen import FrozenFile, digest_of

__all__ = ["ConfigWatch"]

_log = logging.getLogger("vllm.gkt")


class ConfigWatch:
    """Compares the file with what was read of it."""

    def __init__(self, file: FrozenFile, told: Callable[[bool], None], *, every_s: float = 5.0) -> None:
        """``told``: hears whether it is another one, at every look. ``every_s``: seconds between two looks."""
        self._file = file
        self._told = told
        self._every_s = every_s
        self._seen = file.digest

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._file.path

    @property
    def digest(self) -> str:
        """Of what the server goes by."""
        return self._file.digest

    @property
    def changed(self) -> bool:
        """As of the last look."""
        return self._seen != self._file.digest

    async def look(self) -> None:
        """Once."""
        found = await asyncio.to_thread(_digest, self._file.path)
        if found != self._seen:
            self._seen = found
            _log.warning("gkt: %s", self._sentence(found))
        self._told(self.changed)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look now and then while the block runs."""
        async with beside([self._watch()]):
            yield

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)

    def _sentence(self, found: str) -> str:
        path = self._file.path
        if not self.changed:
            return f"{path} is again what this server was started with"
        what = "has changed" if found else "cannot be read any more"
        return f"{path} {what}; this server goes on with what it was started with, restart it to use another one"


def _digest(path: Path) -> str:
    """Of the text; empty where there is none."""
    try:
        return digest_of(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        return ""
