"""What comes back: chunks and whole responses, down to text, the reason for its end, and usage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gkt_openai.calls import Route
from gkt_openai.errors import EndpointError
from gkt_openai.events import EventReader, EventTooLongError
from gkt_plugins.contracts import FinishReason
from gkt_plugins.openai_wire.usage import read_drafts

__all__ = ["ChunkReader", "StreamReader", "read_object", "read_whole", "truncated"]

_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
}


def read_object(data: bytes, engine: str) -> dict[str, Any]:
    """One JSON object of the API.

    :raises EndpointError: it is none, or it is an error object.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise _corrupt(engine, "what is not JSON") from exc
    if not isinstance(found, dict):
        raise _corrupt(engine, f"a JSON {type(found).__name__} for an object")
    if found.get("error"):
        error = found["error"]
        code = error.get("code") if isinstance(error, dict) else None
        said = f" with code {code}" if isinstance(code, str | int) else ""
        raise EndpointError(
            f"the endpoint of engine {engine!r} failed in the middle of its answer{said}; see its log, or try again",
            code="upstream_failed",
            retryable=True,
        )
    return found


class ChunkReader:
    """The chunks of one stream, each once."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._events = EventReader()
        self._previous = b""
        self._previous_id: bytes | None = None
        self._counted = 0
        """Running count of tokens, where every chunk has one."""
        self._rose = False
        """The last chunk raised it."""
        self._pairs = _Pairs(engine)
        self.done = False
        """The end was marked."""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The chunks that have become complete with ``data``.

        :raises EndpointError: one is corrupt, or says that the endpoint failed.
        """
        try:
            events = self._events.feed(data)
        except EventTooLongError as exc:
            raise _corrupt(self._engine, "a frame without end") from exc
        return self._chunks(events)

    def end(self) -> list[dict[str, Any]]:
        """The body is over: the last chunks."""
        chunks = self._chunks(self._events.end())
        self._pairs.end()
        return chunks

    def _chunks(self, events: list[tuple[bytes, bytes | None]]) -> list[dict[str, Any]]:
        chunks = []
        for event, number in events:
            if event == b"[DONE]":
                self._pairs.end()
                self.done = True
                continue
            chunk = read_object(event, self._engine)
            if not self._repeated(event, number, chunk):
                chunks.append(chunk)
        return chunks

    def _repeated(self, event: bytes, number: bytes | None, chunk: Mapping[str, Any]) -> bool:
        """Is this frame the previous one again?

        Equal bytes are no proof: "no no" is two equal frames. What proves it is a number, random padding, or a running
        count of tokens that did not go on.
        """
        same = event == self._previous
        again = self._pairs.second(chunk, same=same)
        if same and number is not None and number == self._previous_id:
            return True
        self._previous, self._previous_id = event, number
        if again or (same and b'"obfuscation"' in event):
            return True
        usage = chunk.get("usage")
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if not isinstance(count, int):
            return False
        if same and self._rose and count == self._counted:
            return True
        self._rose, self._counted = count > self._counted, count
        return False


class _Pairs:
    """A stream that begins with the same frame without text twice may be one in which each frame comes twice.

    It is read as such while all frames come in pairs. Where text was left out on that ground and the pairs end, nobody
    can say what was text, so it is an error.
    """

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._seen = 0
        self._paired = False
        self._open = False
        """The last frame's copy is still to come."""
        self._left_out = False
        """Text was."""

    def second(self, chunk: Mapping[str, Any], *, same: bool) -> bool:
        """Is this the second of a pair? ``same``: it equals the frame before."""
        self._seen += 1
        if self._seen == 2 and same and not _has_text(chunk):
            self._paired = True
            return True
        if not self._paired:
            return False
        if not self._open:
            self._open = True
            return False
        if same:
            self._open = False
            self._left_out = self._left_out or _has_text(chunk)
            return True
        self.end()
        self._paired = False
        return False

    def end(self) -> None:
        """No pair follows. :raises EndpointError: one is half, and text was left out."""
        if self._open and self._left_out:
            raise _corrupt(self._engine, "some frames twice and others once")


def _has_text(chunk: Mapping[str, Any]) -> bool:
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta = choice.get("delta")
    return bool(choice.get("text") or (isinstance(delta, dict) and delta.get("content")))


class StreamReader:
    """The text of one streamed answer, why it ended, and what it used."""

    def __init__(self, route: Route, engine: str) -> None:
        self._route = route
        self._engine = engine
        self._chunks = ChunkReader(engine)
        self.reason: FinishReason | None = None
        self.usage: Mapping[str, Any] | None = None
        """The newest; some endpoints tell it in every chunk, and the last is the whole."""
        self.drafts = (0, 0)
        """Drafted and accepted tokens, of an endpoint that tells them."""
        self.reasoned = False
        """Text came that is not part of the answer."""

    @property
    def done(self) -> bool:
        """The end was marked."""
        return self._chunks.done

    def feed(self, data: bytes) -> str:
        """The text that has become complete with ``data``. :raises EndpointError: see :class:`ChunkReader`."""
        return "".join([self._text(chunk) for chunk in self._chunks.feed(data)])

    def end(self) -> str:
        """The body is over: the last text. :raises EndpointError: the answer is not."""
        text = "".join([self._text(chunk) for chunk in self._chunks.end()])
        if self.reason is None:
            raise truncated(self._engine)
        return text

    def _text(self, chunk: Mapping[str, Any]) -> str:
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        self.drafts = max(self.drafts, read_drafts(chunk))
        choices = chunk.get("choices")
        if not choices:
            return ""
        try:
            choice = choices[0]
            if self._route == "completions":
                text = choice.get("text")
            else:
                delta = choice.get("delta") or {}
                text = delta.get("content")
                self.reasoned = self.reasoned or bool(delta.get("reasoning_content") or delta.get("reasoning"))
            reason = choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError) as exc:
            raise _corrupt(self._engine, "a chunk without the API's fields") from exc
        if text is not None and not isinstance(text, str):
            raise _corrupt(self._engine, f"a {type(text).__name__} for text")
        if text and self.reason is not None:
            raise _corrupt(self._engine, "more text after its end")
        if reason is not None:
            self.reason = _reason(reason, self._engine)
        return text or ""


def truncated(engine: str) -> EndpointError:
    """A stream is over, and its answer is not."""
    return EndpointError(
        f"the stream of engine {engine!r} must end with a finish reason, and ended without one, so that text may be "
        f"missing; try again",
        code="upstream_truncated",
        retryable=True,
    )


def read_whole(found: Mapping[str, Any], route: Route, engine: str) -> tuple[str, FinishReason, bool]:
    """Text, reason, and whether the model also wrote what is not part of the answer, of a whole response.

    :raises EndpointError: it has another form, or no text.
    """
    try:
        choice = found["choices"][0]
        if route == "completions":
            text, reasoned = choice["text"], False
        else:
            message = choice["message"]
            text = message.get("content")
            reasoned = bool(message.get("reasoning_content") or message.get("reasoning"))
        reason = choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError) as exc:
        raise _corrupt(engine, "a response without the API's fields") from exc
    if text is not None and not isinstance(text, str):
        raise _corrupt(engine, f"a {type(text).__name__} for text")
    return text or "", _reason(reason, engine), reasoned


def _reason(reason: object, engine: str) -> FinishReason:
    if isinstance(reason, str) and reason in _REASONS:
        return _REASONS[reason]
    if reason in ("tool_calls", "function_call"):
        what = "called a tool, which is no text; do not offer it tools in engines.NAME.body"
    elif reason == "content_filter":
        what = "was stopped by its content filter"
    elif reason is None:
        what = "gave no reason for its end, so that text may be missing; try again"
    else:
        what = f"ended for an unknown reason, {str(reason)[:40]!r}"
    raise EndpointError(f"the endpoint of engine {engine!r} {what}", code="upstream_stopped", retryable=reason is None)


def _corrupt(engine: str, what: str) -> EndpointError:
    return EndpointError(
        f"the endpoint of engine {engine!r} must speak the OpenAI API, and sent {what}; try again, or look at what is "
        f"between it and here",
        code="upstream_corrupt",
        retryable=True,
    )
