"""What vLLM's answers tell of themselves, whichever API they are in: as a chunk of OpenAI's chats or completions.

vLLM's server also speaks OpenAI's Responses and Anthropic's Messages, whose counts and ends have other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["ADDRESSES", "as_chunk", "as_object", "event_data", "is_usage_alone", "without_thoughts"]

ADDRESSES = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/chat/completions/batch", "/inference/v1/generate", "/invocations"),
    }
)
"""Where vLLM generates text in one of those words."""

_ENDED = frozenset({"response.completed", "response.incomplete", "message_stop"})
_OBJECTS_ENDED = frozenset({"completed", "incomplete"})


def event_data(event: bytes) -> Mapping[str, Any] | None:
    """The object of a server-sent event; None where it has none."""
    for line in event.splitlines():
        if line.startswith(b"data:"):
            return as_object(line[5:])
    return None


def as_object(data: bytes) -> Mapping[str, Any] | None:
    """The JSON object that ``data`` is; None where it is none."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def as_chunk(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """``found``, a whole response or an event of a stream, with ``usage``, ``choices`` and ``metrics`` where OpenAI's
    chats have them."""
    if "choices" in found:
        return found
    inner = found.get("response") or found.get("message")
    inner = inner if isinstance(inner, Mapping) else found
    chunk: dict[str, Any] = {}
    if isinstance(usage := inner.get("usage") or found.get("usage"), Mapping):
        chunk["usage"] = _usage(usage)
    if (text := _text(found)) or _ends(found):
        chunk["choices"] = [{"text": text, "finish_reason": "stop" if _ends(found) else None}]
    return chunk


def _usage(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """In the words of chats. Anthropic's ``input_tokens`` are those that were not cached."""
    if "input_tokens" not in usage:
        return usage
    prompt, details = usage["input_tokens"], usage.get("input_tokens_details")
    cached = usage.get("cache_read_input_tokens")
    if details is None and isinstance(cached, int) and isinstance(prompt, int):
        prompt += cached + (usage.get("cache_creation_input_tokens") or 0)
        details = {"cached_tokens": cached}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.get("output_tokens"),
        "prompt_tokens_details": details,
    }


def _text(event: Mapping[str, Any]) -> str:
    delta = event.get("delta")
    if isinstance(delta, Mapping):
        delta = delta.get("text")
    return delta if isinstance(delta, str) else ""


def _ends(found: Mapping[str, Any]) -> bool:
    if found.get("type") in _ENDED:
        return True
    if found.get("object") == "response":
        return found.get("status") in _OBJECTS_ENDED
    return found.get("type") == "message" and bool(found.get("stop_reason"))


def is_usage_alone(chunk: Mapping[str, Any]) -> bool:
    """Whether the chunk is the one that ``stream_options.include_usage`` asks for."""
    return chunk.get("choices") == [] and chunk.get("usage") is not None


def without_thoughts(part: bytes) -> bytes:
    """``part``, a whole chat or events of one whose answer had begun, with what vLLM took for the model's thoughts as
    text: most of its reasoning parsers take all for thoughts that no end of thoughts comes before, and an answer that
    goes on has none."""
    if b'"reasoning' not in part:
        return part
    return b"\n".join([_line_without_thoughts(line) for line in part.split(b"\n")])


def _line_without_thoughts(line: bytes) -> bytes:
    data = line.removeprefix(b"data:")
    found = as_object(data)
    for choice in (found or {}).get("choices") or ():
        said = choice.get("delta") or choice.get("message") or {}
        thoughts = [said.pop(name, None) for name in ("reasoning", "reasoning_content")]
        said["content"] = (thoughts[0] or thoughts[1] or "") + (said.get("content") or "")
    return line if found is None else line[: len(line) - len(data)] + orjson.dumps(found)
