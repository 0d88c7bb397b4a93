"""Of those who want the same thing at the same time one fetches it, and the others wait for that one.

All of it is memory of one process: when a process dies, nothing stays behind that anybody could wait for.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

__all__ = ["Flight", "Landed", "SingleFlight"]

T = TypeVar("T")


class Landed(Generic[T]):
    """A value that another fetched."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class Flight(Generic[T]):
    """One fetch. Whoever leads it ends it by one of its methods; the first that comes counts."""

    def __init__(self, flights: dict[str, Flight[T]] | None = None, key: str = "") -> None:
        """Without ``flights`` nobody waits for it."""
        self._flights = flights
        self._key = key
        self.over = asyncio.Event()
        self.landed: Landed[T] | None = None
        self.failed = False

    def land(self, value: T) -> None:
        """Hand ``value`` to those who wait."""
        self._end(Landed(value), failed=False)

    def give_up(self, *, failed: bool) -> None:
        """There will be no value. ``failed``: fetching failed, so all who wait fetch for themselves, at once.
        Otherwise whoever led has gone away, and one of those who wait leads next."""
        self._end(None, failed=failed)

    def _end(self, landed: Landed[T] | None, *, failed: bool) -> None:
        if self.over.is_set():
            return
        self.landed, self.failed = landed, failed
        if self._flights is not None:
            del self._flights[self._key]
        self.over.set()


class SingleFlight(Generic[T]):
    """The fetches under way, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}

    async def join(self, key: str) -> Landed[T] | Flight[T]:
        """What another fetched, after waiting for it; or a flight, which the caller leads and must end.

        Cancelling the wait disturbs nobody.
        """
        while (flight := self._flights.get(key)) is not None:
            await flight.over.wait()
            if flight.landed is not None:
                return flight.landed
            if flight.failed:
                return Flight()
        flight = self._flights[key] = Flight(self._flights, key)
        return flight
