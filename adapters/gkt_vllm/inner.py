"""vLLM's own application as the student: called in this process, its streams passed on as they are written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx2
from starlette.types import ASGIApp

from gkt_vllm.own_words import OwnWords
from gkt_vllm.spoken import without_thoughts

__all__ = ["InnerTransport", "UnderWay", "under_way"]


@dataclass(frozen=True, slots=True)
class UnderWay:
    """The client's request that an inner call belongs to."""

    scope: MutableMapping[str, Any]
    """Inner calls are made as the same client, with the same headers, below the same middleware."""
    request_id: str
    """Of the answer; vLLM's ids of the inner calls begin with it, so that its log can be read beside the ledger."""
    adapter: str = ""
    """The LoRA adapter of the server that it names, which is then the model that answers, and is on record."""
    words: OwnWords = field(default_factory=OwnWords)
    """In which the student is asked."""
    numbers: Iterator[int] = field(default_factory=count)


_ANOTHER = frozenset({b"content-length", b"transfer-encoding", b"accept", b"x-request-id"})
"""Headers of the client's that an inner call has others of."""

under_way: ContextVar[UnderWay] = ContextVar("gkt_vllm_under_way")


class InnerTransport(httpx2.AsyncBaseTransport):
    """Sends requests to the application below the middleware. Closing a response tells it that its client has gone."""

    app: ASGIApp
    """Set by the middleware above it, before the first request."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        now = under_way.get()
        body = json.loads(await request.aread())
        asked = now.words.put(body) | ({"model": now.adapter} if now.adapter else {})
        data = json.dumps(asked, ensure_ascii=False).encode()
        path = request.url.path
        headers = [(name, value) for name, value in now.scope["headers"] if name not in _ANOTHER]
        headers.append((b"content-length", b"%d" % len(data)))
        headers.append((b"x-request-id", f"{now.request_id}-{next(now.numbers)}".encode()))
        scope = {**now.scope, "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": headers, "state": dict(now.scope.get("state") or {})}
        call = _Call(self.app, scope, data, goes_on=bool(asked.get("continue_final_message")))
        return await call.response(request)

    async def aclose(self) -> None:
        """Nothing is kept between requests."""


class _Call(httpx2.AsyncByteStream):
    """One inner request, on a task of its own."""

    def __init__(self, app: ASGIApp, scope: dict[str, Any], data: bytes, *, goes_on: bool) -> None:
        """``goes_on``: with a chat's answer that has begun."""
        self._goes_on = goes_on
        self._messages: asyncio.Queue[MutableMapping[str, Any] | BaseException | None] = asyncio.Queue()
        self._unread = [data]
        self._gone = asyncio.Event()
        self._task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception as exc:  # noqa: BLE001 - it belongs to whoever reads the response
            self._messages.put_nowait(exc)
        else:
            self._messages.put_nowait(None)

    async def _receive(self) -> dict[str, Any]:
        if self._unread:
            return {"type": "http.request", "body": self._unread.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        self._messages.put_nowait(message)

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self._messages.get()
        if message is None:
            raise httpx2.RemoteProtocolError("the application ended its response too early")
        if isinstance(message, BaseException):
            raise httpx2.RemoteProtocolError(f"the application failed: {message!r}") from message
        return message

    async def response(self, request: httpx2.Request) -> httpx2.Response:
        """Once its head is there."""
        try:
            head = await self._next()
        except BaseException:
            await self.aclose()
            raise
        return httpx2.Response(head["status"], headers=head["headers"], stream=self, request=request)

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        more = True
        while more:
            message = await self._next()
            more = message.get("more_body", False)
            if part := message.get("body", b""):
                yield without_thoughts(part) if self._goes_on else part

    async def aclose(self) -> None:
        """The client has gone: vLLM aborts what still runs."""
        self._gone.set()
        _, late = await asyncio.wait([self._task], timeout=_PATIENCE_S)
        if late:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


_PATIENCE_S = 0.5
"""How long the application may take to notice; then its task is cancelled, which it notices in any case."""
