"""HTTP/1.1 connections to one endpoint.

httpx2's own pool looks at each of its connections whenever a request begins or ends. With 2,000 open streams that is a
millisecond of the event loop each time; a stack of idle connections costs the same however many are open.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator

import httpcore2
import httpx2

from gkt_openai.network import LoopBackend

__all__ = ["Connections"]

_KEEP_IDLE_S = 4.0
"""Less than the five seconds after which common servers close an idle connection."""
_STALE_WITHIN_S = 1.0
"""A used connection that ends so soon without an answer had been closed by the server before; another is taken, once.
One that ends later may have had the request worked on, which is for the caller to judge."""
_HUNG_UP = (httpcore2.ReadError, httpcore2.WriteError, httpcore2.RemoteProtocolError)


class Connections(httpx2.AsyncBaseTransport):
    """Sends requests to one origin, each on a connection of its own, which is used again afterwards.

    Raises the errors of ``httpcore2``.
    """

    def __init__(self, url: str, *, ssl_context: ssl.SSLContext | None = None) -> None:
        """``url``: of the endpoint. ``ssl_context``: None trusts what the system trusts."""
        self._origin = httpcore2.URL(url).origin
        self._ssl_context = ssl_context
        self._backend = LoopBackend()
        self._idle: deque[tuple[float, httpcore2.AsyncHTTPConnection]] = deque()
        """The last one used is at the right, and taken first; those at the left grow old."""
        self._closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        inner = httpcore2.Request(
            request.method,
            httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        begun = time.monotonic()
        connection = await self._idle_connection()
        while True:
            used = connection is not None
            connection = connection or self._new_connection()
            try:
                response = await connection.handle_async_request(inner)
            except BaseException as exc:
                await connection.aclose()
                stale = used and isinstance(exc, _HUNG_UP) and time.monotonic() - begun < _STALE_WITHIN_S
                if not stale:
                    raise
                connection = None
            else:
                return httpx2.Response(
                    response.status, headers=response.headers, stream=_Body(self, connection, response), request=request
                )

    async def aclose(self) -> None:
        """Close idle connections; those in use are closed when their responses are."""
        self._closed = True
        while self._idle:
            await self._idle.pop()[1].aclose()

    async def _idle_connection(self) -> httpcore2.AsyncHTTPConnection | None:
        while self._idle:
            _, connection = self._idle.pop()
            if not connection.has_expired():
                return connection
            await connection.aclose()
        return None

    def _new_connection(self) -> httpcore2.AsyncHTTPConnection:
        return httpcore2.AsyncHTTPConnection(
            self._origin,
            ssl_context=self._ssl_context,
            keepalive_expiry=_KEEP_IDLE_S,
            network_backend=self._backend,
        )

    async def _release(self, connection: httpcore2.AsyncHTTPConnection) -> None:
        now = time.monotonic()
        if connection.is_idle() and not self._closed:
            self._idle.append((now, connection))
        else:
            await connection.aclose()
        while self._idle and now - self._idle[0][0] > _KEEP_IDLE_S:
            await self._idle.popleft()[1].aclose()


class _Body(httpx2.AsyncByteStream):
    """A response's body, which holds its connection until it is closed."""

    def __init__(
        self, owner: Connections, connection: httpcore2.AsyncHTTPConnection, response: httpcore2.Response
    ) -> None:
        self._owner = owner
        self._connection = connection
        self._response = response
        self._parts: AsyncGenerator[bytes] | None = None
        self._closed = False

    def __aiter__(self) -> AsyncGenerator[bytes]:
        self._parts = self._response.aiter_stream()
        return self._parts

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            if self._parts is not None:
                await self._parts.aclose()
            await self._response.aclose()
            await self._owner._release(self._connection)
