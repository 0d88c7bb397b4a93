"""A model server that is never the limit: fixed delays, made-up text, no model. Run as a process of its own.

The model's name says what it does: ``fixed-50`` answers everything after 50 ms; ``paced-200`` writes its first token
after 200 ms and each further one 200 ms later. Answers have ``max_tokens`` tokens. A token is ``@N`` and a space, where
N is the moment it was written, in microseconds of the system's monotonic clock, which all processes share; so whoever
receives the text knows how long it was under way.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping
from typing import Any, cast

import httptools
import orjson
import uvloop

__all__ = ["main"]

_JSON = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_PROMPT_TOKENS = 16


def _token() -> str:
    return f"@{time.monotonic_ns() // 1000} "


class _Answer:
    """One answer under way."""

    def __init__(self, transport: asyncio.Transport, chat: bool, body: Mapping[str, Any]) -> None:
        self._transport = transport
        self._chat = chat
        self._tokens = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
        self._model = str(body["model"])
        self._usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._loop = asyncio.get_running_loop()
        self._written = 0
        kind, _, milliseconds = self._model.partition("-")
        self._pause_s = int(milliseconds) / 1000
        self._due = self._loop.time() + self._pause_s
        if not body.get("stream"):
            seconds = self._pause_s * (self._tokens if kind == "paced" else 1)
            self._timer = self._loop.call_later(seconds, self._write_whole)
        elif kind == "paced":
            transport.write(_STREAM)
            self._timer = self._loop.call_at(self._due, self._write_next)
        else:
            transport.write(_STREAM)
            self._timer = self._loop.call_later(self._pause_s, self._write_rest)

    def stop(self) -> None:
        self._timer.cancel()

    def _write_whole(self) -> None:
        text = "".join(_token() for _ in range(self._tokens))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        body = orjson.dumps(self._said("", [choice]) | {"usage": self._counts()})
        self._transport.write(_JSON % (b"200 OK", len(body), body))

    def _write_next(self) -> None:
        self._event(self._said(".chunk", [self._piece(_token(), None)]))
        self._written += 1
        if self._written == self._tokens:
            self._end()
            return
        self._due += self._pause_s
        self._timer = self._loop.call_at(self._due, self._write_next)

    def _write_rest(self) -> None:
        for _ in range(self._tokens):
            self._event(self._said(".chunk", [self._piece(_token(), None)]))
        self._end()

    def _end(self) -> None:
        self._event(self._said(".chunk", [self._piece("", "length")]))
        if self._usage:
            self._event(self._said(".chunk", []) | {"usage": self._counts()})
        self._chunk(b"data: [DONE]\n\n")
        self._transport.write(b"0\r\n\r\n")

    def _piece(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        said = {"delta": {"content": text}} if self._chat else {"text": text}
        return {"index": 0, "finish_reason": finish_reason, **said}

    def _said(self, suffix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self._chat else "text_completion"
        return {"id": "upstream", "object": kind, "created": 1, "model": self._model, "choices": choices}

    def _counts(self) -> dict[str, int]:
        return {
            "prompt_tokens": _PROMPT_TOKENS,
            "completion_tokens": self._tokens,
            "total_tokens": _PROMPT_TOKENS + self._tokens,
        }

    def _event(self, value: Mapping[str, Any]) -> None:
        self._chunk(b"data: %s\n\n" % orjson.dumps(value))

    def _chunk(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%s\r\n" % (len(data), data))


class _Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._answer: _Answer | None = None
        self._url = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's says so only in its documentation

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.stop()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._url.endswith(b"/completions"):
            self._answer = _Answer(self._transport, b"/chat/" in self._url, orjson.loads(self._body))
            return
        known = self._url.endswith(b"/models")
        body = orjson.dumps({"object": "list", "data": []} if known else {"error": {"message": "no such route"}})
        self._transport.write(_JSON % (b"200 OK" if known else b"404 Not Found", len(body), body))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
