"""Whether a client is still there: work for one that has gone is cancelled at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.types import Receive

__all__ = ["ClientGoneError", "Presence"]


class ClientGoneError(Exception):
    """The client closed its connection before its answer was complete."""


class Presence:
    """Cancels what runs inside the ``async with`` block when the client goes away, and raises
    :class:`ClientGoneError` from it. To be entered once the request's body has been read."""

    def __init__(self, receive: Receive, complete: Callable[[], bool]) -> None:
        """``complete``: the answer is out, so that servers report a client as gone that is still there."""
        self._receive = receive
        self._complete = complete
        self._gone = False

    async def __aenter__(self) -> Presence:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        del self._watcher  # its exception will hold its frame, which holds this: a ring for the collector to find
        if not self._gone:
            return
        left = self._task.uncancel()
        if kind is not None and issubclass(kind, asyncio.CancelledError) and left <= self._cancelling:
            raise ClientGoneError from value

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # anything else belongs to a body that is complete
        if self._complete():
            return
        self._gone = True
        self._task.cancel()
