"""Streamed answers in OpenAI's words, as bytes of server-sent events: one template per request, filled per piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gkt_plugins.contracts import FinishReason
from gkt_plugins.openai_wire.errors import error_body
from gkt_plugins.openai_wire.replies import whole_characters
from gkt_plugins.openai_wire.requests import Asked

__all__ = ["DONE", "ChunkWriter", "event", "failure_event"]

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """``data`` as one event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def failure_event(error: BaseException) -> bytes:
    """What ends a stream that cannot be completed; OpenAI's clients raise it. No :data:`DONE` follows."""
    return event(error_body(error)[1])


class ChunkWriter:
    """Writes the chunks of one answer."""

    def __init__(self, asked: Asked, *, created: int) -> None:
        """``created``: seconds since the epoch."""
        chat = asked.route == "chat"
        about = {
            "id": asked.request_id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": created,
            "model": asked.model,
        }
        self._head = b"data: " + orjson.dumps(about)[:-1]
        self._openings: dict[int, bytes] = {}
        """What each choice's chunks begin with."""
        if chat:
            self._first, self._more, self._close = (
                b'"delta":{"role":"assistant","content":',
                b'"delta":{"content":',
                b"}",
            )
        else:
            self._first, self._more, self._close = b'"text":', b'"text":', b""
        self._last = b'"delta":{}' if chat else b'"text":""'
        self._tail = b',"usage":null' if asked.include_usage else b""
        self._end = self._close + b',"logprobs":null,"finish_reason":null}]' + self._tail + b"}\n\n"

    def text(self, index: int, text: str) -> bytes:
        """A piece of choice ``index``."""
        opening = self._openings.get(index)
        if opening is not None:
            return opening + self._more + _quoted(text) + self._end
        opening = self._openings[index] = self._head + b',"choices":[{"index":%d,' % index
        return opening + self._first + _quoted(text) + self._end

    def finish(self, index: int, reason: FinishReason, gkt: Mapping[str, Any] | None = None) -> bytes:
        """The end of choice ``index``. ``gkt``: on the last chunk of a stream without usage."""
        before = b"" if index in self._openings else self.text(index, "")
        told = b"" if gkt is None else b',"gkt":' + orjson.dumps(gkt)
        ending = b',"logprobs":null,"finish_reason":"%b"}]' % reason.encode()
        return before + self._openings[index] + self._last + ending + self._tail + told + b"}\n\n"

    def usage(self, usage: Mapping[str, Any], gkt: Mapping[str, Any]) -> bytes:
        """The last chunk of a stream with usage; it has no choices."""
        said = b',"choices":[],"usage":' + orjson.dumps(usage) + b',"gkt":' + orjson.dumps(gkt)
        return self._head + said + b"}\n\n"


def _quoted(text: str) -> bytes:
    try:
        return orjson.dumps(text)
    except TypeError:  # half a surrogate pair, which an engine should not have let through
        return orjson.dumps(whole_characters(text))
