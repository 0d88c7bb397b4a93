"""Whether this process is alive, and whether it should be sent requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

__all__ = ["Check", "Readiness"]

Check = Callable[[], Awaitable[None]]
"""Raises where something that requests need is not there."""

_log = logging.getLogger(__name__)


class Readiness:
    """What ``/ready`` answers. ``/health`` answers 200 as long as the process can answer at all.

    Upstreams are not checked: a gateway whose upstream fails still answers from the other engine, and taking all
    gateways out of service at once helps nobody. Circuit breakers and ``/metrics`` tell of upstreams.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        kept_s: float = 1.0,
        timeout_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``kept_s``: results are kept for so long, so that asking often costs nothing. ``timeout_s``: of one check."""
        self.draining = False
        """Set when shutting down: open requests finish, new ones should go elsewhere."""
        self._checks = dict(checks)
        self._kept_s = kept_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._checking = asyncio.Lock()
        self._checked_at: float | None = None
        self._failed: tuple[str, ...] = ()

    async def report(self) -> tuple[int, dict[str, object]]:
        """Status and body: 200 or 503, and which checks failed, by name; why is in the log, not in the answer."""
        if self.draining:
            return 503, {"status": "draining", "failed": []}
        async with self._checking:
            if self._checked_at is None or self._clock() - self._checked_at >= self._kept_s:
                self._failed = await self._check()
                self._checked_at = self._clock()
        if self._failed:
            return 503, {"status": "not ready", "failed": list(self._failed)}
        return 200, {"status": "ready", "failed": []}

    async def _check(self) -> tuple[str, ...]:
        failed: list[str] = []
        for name, check in self._checks.items():
            try:
                async with asyncio.timeout(self._timeout_s):
                    await check()
            except Exception as exc:  # noqa: BLE001 - whatever fails, the answer is that it is not ready
                _log.error("not ready: the check %r failed: %s", name, exc or type(exc).__name__)
                failed.append(name)
        return tuple(failed)
