"""An HTTP/1.1 client that costs almost nothing: prepared requests on kept connections, responses parsed in C."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import orjson

__all__ = ["Connections", "Outcome", "Prepared"]

_STAMP = re.compile(rb"@(\d+)")


@dataclass(frozen=True)
class Prepared:
    """A request as bytes."""

    host: str
    port: int
    data: bytes

    @classmethod
    def of(cls, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Prepared:
        parts = urlsplit(url)
        assert parts.hostname, url
        assert parts.port, url
        content = orjson.dumps(body)
        lines = [
            f"POST {parts.path} HTTP/1.1",
            f"host: {parts.hostname}:{parts.port}",
            "content-type: application/json",
            f"content-length: {len(content)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return cls(parts.hostname, parts.port, "\r\n".join(lines).encode() + b"\r\n\r\n" + content)


@dataclass(slots=True)
class Outcome:
    """What came back."""

    seconds: float = 0.0
    """From the request's first byte out to the response's last byte in."""
    first_ms: float | None = None
    """How long the first text was under way; None where there was none."""
    delays_ms: list[float] = field(default_factory=list)
    """The same of every further text."""
    tokens: int = 0
    error: str | None = None


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._done: asyncio.Future[None] | None = None
        self._outcome = Outcome()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's says so only in its documentation

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    async def ask(self, prepared: Prepared) -> Outcome:
        self._outcome = Outcome()
        self._rest = b""
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        self._transport.write(prepared.data)
        await self._done
        self._outcome.seconds = time.perf_counter() - started
        return self._outcome

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._end(f"not HTTP: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("the connection was closed")

    def on_body(self, body: bytes) -> None:
        """Read the stamps of what is whole; an event that a packet split waits for the rest."""
        now = time.monotonic_ns() // 1000
        whole, separator, self._rest = (self._rest + body).rpartition(b"\n\n")
        outcome = self._outcome
        for stamp in _STAMP.findall(whole + separator):
            delay = (now - int(stamp)) / 1000
            outcome.tokens += 1
            if outcome.first_ms is None:
                outcome.first_ms = delay
            else:
                outcome.delays_ms.append(delay)

    def on_message_complete(self) -> None:
        self._outcome.tokens += len(_STAMP.findall(self._rest))
        status = self._parser.get_status_code()
        if status != 200:
            self._end(f"status {status}: {self._rest[:200]!r}")
        elif not self._outcome.tokens:
            self._end(f"no text: {self._rest[:200]!r}")
        else:
            self._end(None)
        if not self._parser.should_keep_alive():
            self._transport.close()

    def _end(self, error: str | None) -> None:
        if self._done is not None and not self._done.done():
            self._outcome.error = error
            self._done.set_result(None)


class Connections:
    """Connections that are free, for whoever asks next; as many as there are requests at once."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, int], list[_Connection]] = {}

    async def ask(self, prepared: Prepared) -> Outcome:
        """Send a request and read the whole response."""
        address = (prepared.host, prepared.port)
        free = self._free.setdefault(address, [])
        connection = free.pop() if free else None
        if connection is None or not connection.usable:
            try:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(_Connection, *address)
            except OSError as exc:
                return Outcome(error=f"no connection: {exc}")
        outcome = await connection.ask(prepared)
        if connection.usable:
            free.append(connection)
        return outcome
