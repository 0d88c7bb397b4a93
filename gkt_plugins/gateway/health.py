"""Whether this process is alive, and whether it should be sent requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

__all__ = ["Readiness"]


class Readiness:
    """What ``/ready`` answers. ``/health`` answers 200 as long as the process can answer at all."""

    def __init__(self, checks: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        """``checks``: name → raises :class:`GktError` where it fails. Their results are kept for a second."""
        self.draining = False
        """Set when shutting down: open requests finish, new ones should go elsewhere."""

    async def report(self) -> tuple[int, dict[str, object]]:
        """Status and body: 200 or 503, and which checks failed, by name; why is in the log, not in the answer."""
        raise NotImplementedError
