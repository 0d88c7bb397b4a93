"""What an upstream is told, and what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["Fault", "Received", "Reply", "Script"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong. Places are counted in tokens; None: it does not happen."""

    drop_after: int | None = None
    """The connection is cut."""
    truncate_after: int | None = None
    """Half a frame, then the response ends as if it were complete."""
    hang_after: int | None = None
    """Nothing more comes, until the client goes."""
    corrupt_after: int | None = None
    """The next frame is not JSON."""
    invalid_utf8_after: int | None = None
    """The next frame is not UTF-8."""
    error_after: int | None = None
    """An error object comes in place of the next frame."""
    hang_up: bool = False
    """The request is read, and the connection closed."""
    silent: bool = False
    """The request is read, and nothing is ever answered."""
    duplicate: bool = False
    """Each frame comes twice."""
    split: int | None = None
    """Bytes per packet; 1 splits at every byte."""
    done: bool = True
    """False: no ``[DONE]`` at the end."""
    reason: bool = True
    """False: no ``finish_reason`` at the end."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What becomes of one request."""

    text: str
    finish_reason: str | None = None
    """None: ``length`` where the budget cuts the text, else ``stop``."""
    first_token_s: float = 0.0
    per_token_s: float = 0.0
    status: int = 200
    retry_after_s: float | None = None
    """The header of that name, for a status that is an error."""
    error: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the error object, for a status that is an error."""
    usage: Literal["asked", "never", "every_chunk", "wrong"] = "asked"
    """``asked``: in a last chunk, where ``stream_options`` asks for it, and in whole responses. ``every_chunk``: a
    running count in each. ``wrong``: counts that cannot be."""
    metrics: Mapping[str, Any] | None = None
    """What is told beside ``usage``, such as ``{"speculative_decoding": {…}}``."""
    line_end: Literal["\n", "\r\n", "\r"] = "\n"
    comments: bool = False
    """A comment before each frame."""
    multi_line: bool = False
    """Each frame's JSON is spread over several ``data:`` lines."""
    obfuscation: bool = True
    """Each frame carries random padding, as OpenAI's own do; so a frame that equals the one before is that one."""
    event_ids: bool = False
    """Each frame has a number."""
    reasoning: str = ""
    """Text in ``reasoning_content`` before the answer."""
    message: Mapping[str, Any] | None = None
    """Further keys of a whole response's message, such as ``tool_calls``."""
    fault: Fault = Fault()


@dataclass(slots=True)
class Received:
    """One request, as the upstream saw it."""

    route: str
    """``chat``, ``completions`` or another path."""
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    arrived: float = 0.0
    """``time.perf_counter``; likewise the others."""
    finished: float | None = None
    """When the response was complete."""
    disconnected: float | None = None
    """When the client went before that."""
    sent: int = 0
    """Tokens sent."""
    peer: int = 0
    """The client's port: requests of one connection have the same."""

    @property
    def prefix(self) -> str:
        """The beginning of the answer that a chat brings along; raw prompts keep theirs to themselves."""
        messages = self.body.get("messages") or ()
        return str(messages[-1]["content"]) if messages and messages[-1].get("role") == "assistant" else ""


Script: TypeAlias = str | Reply | Sequence[str | Reply] | Callable[[Received], str | Reply]
