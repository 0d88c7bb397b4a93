"""huggingface_hub's client on connections of ours, and the two routes that it does not have.

Its client keeps every stream open until it is closed as a whole, so each call gets a client of its own, on connections
that all of them share. Left to itself it would also send the token of ``huggingface-cli login`` to whatever server it
is pointed at; here the only key that goes out is the one that the configuration names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2
from huggingface_hub import AsyncInferenceClient

from gkt_plugins.contracts import Message
from gkt_plugins.propagation import trace_headers
from gkt_tgi.options import TGIOptions

__all__ = ["TGIClient", "Token"]

_NO_TOKEN = "-"  # huggingface_hub takes None for "the one of huggingface-cli login"


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a text, as the server's tokenizer sees it."""

    id: int
    start: int
    stop: int


class TGIClient:
    """One server."""

    def __init__(
        self, options: TGIOptions, api_key: str | None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """``transport`` lets a test stand in for the network."""
        self.url = options.base_url.rstrip("/")
        self._api_key = api_key
        self._timeout = httpx2.Timeout(options.read_timeout_s, connect=options.connect_timeout_s, pool=None)
        self._http = httpx2.AsyncClient(
            timeout=self._timeout,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=options.concurrency),
            event_hooks={"request": [self._set_headers], "response": [_read_errors, _split_at_newlines]},
            transport=transport,
        )

    @asynccontextmanager
    async def hub(self) -> AsyncIterator[AsyncInferenceClient]:
        """A client for one call; leaving the block closes its stream, and with it cancels the call."""
        client = AsyncInferenceClient(base_url=self.url, token=_NO_TOKEN, timeout=self._timeout)  # type: ignore[arg-type]
        client._async_client = self._http  # it would open one for itself, and that costs 15 ms
        try:
            yield client
        finally:
            await client.exit_stack.aclose()

    async def tokens(self, inputs: str) -> list[Token] | None:
        """What ``/generate`` would read; None where the server cannot tell."""
        return await self._tokens("/tokenize", {"inputs": inputs})

    async def templated(self, messages: Sequence[Message]) -> tuple[str, list[Token]] | None:
        """The chat as its template writes it, and its tokens; None where the server cannot tell."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        response = await self._http.post(self.url + "/chat_tokenize", json={"messages": turns})
        if response.status_code == 404:
            return None
        found = response.raise_for_status().json()
        return str(found["templated_text"]), [_token(token) for token in found["tokenize_response"]]

    async def _tokens(self, route: str, body: Mapping[str, Any]) -> list[Token] | None:
        response = await self._http.post(self.url + route, json=body)
        if response.status_code == 404:
            return None
        return [_token(token) for token in response.raise_for_status().json()]

    async def info(self) -> dict[str, Any]:
        """What the server tells of itself."""
        response = await self._http.get(self.url + "/info")
        found: dict[str, Any] = response.raise_for_status().json()
        return found

    async def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``/v1/chat/completions``, untouched: a whole response."""
        response = await self._http.post(self.url + "/v1/chat/completions", json=body)
        found: dict[str, Any] = response.raise_for_status().json()
        return found

    @asynccontextmanager
    async def chat_lines(self, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[str]]:
        """``/v1/chat/completions``, untouched: the payloads of a stream's events."""
        async with self._http.stream("POST", self.url + "/v1/chat/completions", json=body) as response:
            yield _payloads(response.raise_for_status().aiter_lines())

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _set_headers(self, request: httpx2.Request) -> None:
        request.headers.update(trace_headers.get())
        request.headers.pop("authorization", None)
        if self._api_key is not None:
            request.headers["authorization"] = f"Bearer {self._api_key}"


async def _read_errors(response: httpx2.Response) -> None:
    if response.status_code >= 400:
        await response.aread()  # of a stream too: it says what is wrong


async def _split_at_newlines(response: httpx2.Response) -> None:
    """httpx2 ends a line at every separator that Unicode has; TGI writes U+2028 and the like into its events."""
    response.aiter_lines = partial(_lines, response)  # type: ignore[method-assign]


async def _lines(response: httpx2.Response) -> AsyncIterator[str]:
    waiting = b""
    async for data in response.aiter_bytes():
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8")


async def _payloads(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        payload = line.removeprefix("data:").strip()
        if line.startswith("data:") and payload != "[DONE]":
            yield payload


def _token(token: Mapping[str, Any]) -> Token:
    return Token(int(token["id"]), int(token["start"]), int(token["stop"]))
