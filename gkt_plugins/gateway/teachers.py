"""Whether the teachers are there, looked at when a server starts: it serves without them, and says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from gkt_plugins.contracts import Engine, Reachable
from gkt_plugins.errors import EngineError
from gkt_plugins.gateway.asides import beside

__all__ = ["Teachers"]

_log = logging.getLogger(__name__)


class Teachers:
    """Looks for those that can be looked for at no cost, until each has been there once.

    What becomes of requests meanwhile is up to ``guidance.on_teacher_error`` and the circuit breaker, as always.
    """

    def __init__(self, *, every_s: float = 5.0) -> None:
        """``every_s``: seconds between two looks."""
        self._every_s = every_s
        self.missing: dict[str, str] = {}
        """Name of an engine that was not there yet when it was last looked for → why."""

    @asynccontextmanager
    async def watched(self, teachers: Iterable[Engine]) -> AsyncIterator[None]:
        """Look for ``teachers`` while the block runs, and never wait for them."""
        by_name = {teacher.name: teacher for teacher in teachers}
        known = {name: teacher for name, teacher in by_name.items() if isinstance(teacher, Reachable)}
        async with beside(self._find(name, teacher) for name, teacher in known.items()):
            yield

    async def _find(self, name: str, teacher: Reachable) -> None:
        while True:
            if await self._is_there(name, teacher):
                return
            await asyncio.sleep(self._every_s)

    async def _is_there(self, name: str, teacher: Reachable) -> bool:
        try:
            await teacher.reach()
        except EngineError as exc:
            if name not in self.missing:
                _log.warning("the teacher %r is not there yet, and requests are served without it: %s", name, exc)
            self.missing[name] = str(exc)
            return False
        except Exception:  # noqa: BLE001 - an engine is someone else's code
            _log.exception("the teacher %r cannot be looked for", name)
            return True
        if self.missing.pop(name, None) is not None:
            _log.info("the teacher %r is there now", name)
        return True
