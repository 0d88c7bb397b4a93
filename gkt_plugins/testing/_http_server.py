"""A small HTTP/1.1 server whose every byte is under the test's control. No package could send half a frame for us."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

__all__ = ["HttpRequest", "HttpServer", "Wire"]

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
            411: "Length Required", 429: "Too Many Requests", 500: "Internal Server Error",
            503: "Service Unavailable"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, whole."""

    method: str
    path: str
    """Without the query."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    peer: int = 0
    """The client's port."""


class Wire:
    """Writes one response."""

    def __init__(self, transport: asyncio.Transport, *, split: int | None = None) -> None:
        self._transport = transport
        self._chunked = False
        self.split = split
        """Bytes per packet of the body; None sends what there is."""

    def head(self, status: int, headers: Mapping[str, str], *, length: int | None = None) -> None:
        """Send the status line and the headers. Without ``length`` the body goes out in chunks."""
        self._chunked = length is None
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
        self._transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    async def send(self, data: bytes) -> None:
        """Send a part of the body."""
        size = self.split or len(data) or 1
        for begin in range(0, len(data), size):
            piece = data[begin : begin + size]
            self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
            if self.split:
                await asyncio.sleep(0)

    def end(self) -> None:
        """The body is complete."""
        if self._chunked:
            self._transport.write(b"0\r\n\r\n")

    def cut(self) -> None:
        """Close the connection in the middle of the body."""
        self._transport.close()

    async def json(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        """A whole response."""
        data = json.dumps(body, ensure_ascii=False).encode()
        self.head(status, {"content-type": "application/json", **(headers or {})}, length=len(data))
        await self.send(data)
        self.end()


class HttpServer:
    """Serves on a free port of the loopback interface, on a thread and an event loop of its own."""

    def __init__(
        self,
        answer: Callable[[HttpRequest, Wire], Awaitable[None]],
        *,
        on_close: Callable[[], None] = lambda: None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``answer``: writes the response; it is cancelled when the client closes the connection. ``on_close``: a
        connection is closed."""
        self._answer = answer
        self._tls = tls
        self.on_close = on_close
        self._ready: Future[int] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._work, name="gkt-upstream", daemon=True)
        self.connections: set[_Connection] = set()
        """Open connections."""

    def start(self) -> int:
        """Begin to listen; the port."""
        self._thread.start()
        return self._ready.result()

    def stop(self) -> None:
        """Close every connection and the port."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._loop = None

    def close_connections(self) -> None:
        """Close every connection."""
        if self._loop is not None:
            for connection in list(self.connections):
                self._loop.call_soon_threadsafe(connection.abort)

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as exc:
            self._ready.set_exception(exc)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=4096, ssl=self._tls)
        self._ready.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        tasks = [connection.task for connection in self.connections if connection.task is not None]
        for connection in list(self.connections):
            connection.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, request: HttpRequest, wire: Wire) -> None:
        await self._answer(request, wire)


class _Connection(asyncio.Protocol):
    """One keep-alive connection; requests are answered one after the other."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.on_close()
        if self.task is not None:
            self.task.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        if self.task is not None or self._transport is None or self._transport.is_closing():
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", 0))
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        peer = self._transport.get_extra_info("peername")[1]
        request = HttpRequest(method, target.partition("?")[0], headers, body, peer)
        self.task = asyncio.get_running_loop().create_task(self._run(request, Wire(self._transport)))

    async def _run(self, request: HttpRequest, wire: Wire) -> None:
        if "chunked" in request.headers.get("transfer-encoding", ""):
            await wire.json(411, {"error": {"message": "send a content-length", "type": "invalid_request_error"}})
            wire.cut()
            return
        await self._server.answer(request, wire)
        self.task = None
        self._next()
