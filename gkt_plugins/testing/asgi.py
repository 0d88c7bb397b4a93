"""A client for ASGI applications in the same process: no socket, and it can go away in the middle of an answer.

::

    async with AsgiClient(app) as client:
        reply = await client.post("/v1/chat/completions", {"model": "gkt/default", "messages": […]})
        async with client.stream("/v1/chat/completions", {…, "stream": True}) as reply:
            async for event in reply.events():
                …
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["AsgiClient", "AsgiReply", "Streamed"]

_Message: TypeAlias = MutableMapping[str, Any]
_App: TypeAlias = Callable[
    [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]
]


@dataclass(frozen=True, slots=True)
class AsgiReply:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@dataclass(slots=True)
class Streamed:
    """A response while it comes."""

    status: int
    headers: Mapping[str, str]
    _pieces: asyncio.Queue[bytes | None]
    _gone: asyncio.Event
    sent: list[bytes] = field(default_factory=list)
    """Every piece that was read."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, as the application sends it."""
        while (piece := await self._pieces.get()) is not None:
            self.sent.append(piece)
            yield piece

    async def events(self) -> AsyncIterator[str]:
        """The data of server-sent events."""
        text = ""
        async for piece in self.pieces():
            text += piece.decode()
            *events, text = text.split("\n\n")
            for event in events:
                yield event.removeprefix("data: ")
        assert not text, f"the stream ended inside an event: {text!r}"

    def disconnect(self) -> None:
        """Go away. What the application sends from now on is lost."""
        self._gone.set()


class AsgiClient:
    """Sends requests to one application; as a context manager it runs the application's lifespan too."""

    def __init__(self, app: _App, *, headers: Mapping[str, str] | None = None) -> None:
        """``headers``: of every request; ``host`` is ``127.0.0.1`` where they do not say."""
        self._app = app
        self._headers = {"host": "127.0.0.1"} | dict(headers or {})
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> AsgiClient:
        await self._stack.enter_async_context(_lifespan(self._app))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> AsgiReply:
        """``GET path``, answered whole."""
        return await self.send("GET", path, b"", headers=headers)

    async def post(self, path: str, body: object, *, headers: Mapping[str, str] | None = None) -> AsgiReply:
        """``POST path``, answered whole. ``body``: bytes as they are, anything else as JSON."""
        return await self.send("POST", path, body, headers=headers)

    async def send(
        self, method: str, path: str, body: object, *, headers: Mapping[str, str] | None = None
    ) -> AsgiReply:
        """Any request, answered whole."""
        async with self.stream(path, body, method=method, headers=headers) as reply:
            data = b"".join([piece async for piece in reply.pieces()])
        return AsgiReply(reply.status, reply.headers, data)

    @asynccontextmanager
    async def stream(
        self, path: str, body: object, *, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Streamed]:
        """Any request, from the moment its answer begins. Leaving the block early is going away."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        asked = {"content-length": str(len(data))} | self._headers | dict(headers or {})
        address, _, query = path.partition("?")
        scope: _Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": address,
            "raw_path": address.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in asked.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8400),
        }
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        head: asyncio.Future[_Message] = asyncio.get_running_loop().create_future()
        gone = asyncio.Event()
        asked_for: list[_Message] = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive() -> _Message:
            if asked_for:
                return asked_for.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: _Message) -> None:
            await asyncio.sleep(0)
            if message["type"] == "http.response.start":
                head.set_result(message)
                return
            if message.get("body"):
                pieces.put_nowait(message["body"])
            if not message.get("more_body", False):
                pieces.put_nowait(None)
                gone.set()  # as servers do, for an application that still listens

        task = asyncio.ensure_future(self._app(scope, receive, send))
        task.add_done_callback(lambda _: None if head.done() else head.cancel())
        try:
            await asyncio.wait([head])
            if head.cancelled():
                await task  # raises what went wrong
                raise AssertionError("the application ended without an answer")
            start = head.result()
            names = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
            yield Streamed(start["status"], names, pieces, gone)
        finally:
            gone.set()
            head.cancel()
            await task


@asynccontextmanager
async def _lifespan(app: _App) -> AsyncIterator[None]:
    to_app: asyncio.Queue[_Message] = asyncio.Queue()
    from_app: asyncio.Queue[_Message] = asyncio.Queue()
    task = asyncio.ensure_future(app({"type": "lifespan", "asgi": {"version": "3.0"}}, to_app.get, from_app.put))
    to_app.put_nowait({"type": "lifespan.startup"})
    answer = await from_app.get()
    if answer["type"] != "lifespan.startup.complete":
        await task  # raises what went wrong
        raise AssertionError(f"the application did not start: {answer}")
    try:
        yield
    finally:
        to_app.put_nowait({"type": "lifespan.shutdown"})
        await task
