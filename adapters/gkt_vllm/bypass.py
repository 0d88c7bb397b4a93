"""Requests that go to vLLM as they came, and its answers as they come: on record like any other call."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Literal

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope

from gkt_plugins.contracts import Prompt, Role, Sampling
from gkt_plugins.errors import EngineError, GktError
from gkt_plugins.gateway.turns import Turn
from gkt_plugins.guidance.events import Request
from gkt_plugins.openai_wire.errors import error_body
from gkt_plugins.openai_wire.forwarded import ForwardedCall
from gkt_plugins.openai_wire.requests import Asked
from gkt_plugins.openai_wire.streams import event as event_of
from gkt_vllm.spoken import as_chunk, as_object, event_data, is_usage_alone

__all__ = ["Replay", "as_asked", "asking_for_usage", "identity_of", "pass_through"]

_EVENT_ENDS = b"\n\n"
_DONE = b"data: [DONE]"


class Replay:
    """A body that has been read, once more; then whatever the server receives."""

    def __init__(self, data: bytes, receive: Receive) -> None:
        self.data = data
        self._unread = [data]
        self._receive = receive
        self.gone = False
        """The client has left."""

    def with_body(self, data: bytes) -> Replay:
        """Another body in its place."""
        return Replay(data, self._receive)

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._unread:
            return {"type": "http.request", "body": self._unread.pop(), "more_body": False}
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        return message


def asking_for_usage(data: bytes, body: Mapping[str, Any]) -> bytes | None:
    """``data``, the body of a request for a stream, asking for the usage chunk; None where it does so already, or vLLM
    will refuse it."""
    options = body.get("stream_options") or {}
    if body.get("stream") is not True or not isinstance(options, dict) or options.get("include_usage"):
        return None
    whole = json.loads(data)  # which keeps every integer as it is
    whole["stream_options"] = {**options, "include_usage": True, "continuous_usage_stats": False}
    return json.dumps(whole).encode()


def identity_of(path: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, str | None]:
    """Of the record and the answer, and the ``x-request-id`` that makes vLLM's own id of an untouched request the same;
    None where the client has one: the record's id then begins with vLLM's, because clients may repeat theirs."""
    fresh = uuid.uuid4().hex
    given = next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), None)
    own = fresh if given is None else f"{given[:64]}-{fresh[:12]}"
    return ("chatcmpl-" if "chat" in path else "cmpl-") + own, fresh if given is None else None


def as_asked(
    path: str, body: Mapping[str, Any], headers: Iterable[tuple[bytes, bytes]], *, model: str, max_tokens: int
) -> tuple[Asked, str | None]:
    """What is to be known of a request for its record, and the second of :func:`identity_of`.

    :param body: what vLLM may still refuse. ``max_tokens``: what vLLM will write at most, unless the body says less.
    """
    identity, own_id = identity_of(path, headers)
    said = (body.get(key) for key in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    most = next((value for value in said if type(value) is int and value > 0), max_tokens)
    n = body.get("n")
    request = Request(
        Prompt(text=_text(body)), Sampling(max_tokens=most), n if type(n) is int and n > 0 else 1, request_id=identity
    )
    asked = Asked(
        route="chat" if "chat" in path else "completions",
        model=model,
        pipeline=None,
        requests=(request,),
        stream=body.get("stream") is True,
        include_usage=False,
        features=frozenset(),
        body=body,
        request_id=identity,
    )
    return asked, own_id


def _text(body: Mapping[str, Any]) -> str:
    """Of the prompt, as far as it is text: for estimates only."""
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, str):
        return prompt
    messages = body.get("messages")
    contents = [one.get("content") for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []
    return "\n".join(content for content in contents if isinstance(content, str))


async def pass_through(
    turn: Turn,
    app: ASGIApp,
    scope: Scope,
    receive: Replay,
    *,
    role: Role,
    said: Mapping[str, str],
    hides_usage: bool,
) -> None:
    """Answer ``turn`` with what ``app`` says to the request.

    :param role: what vLLM is on record as.
    :param said: headers that the answer gets.
    :param hides_usage: the usage chunk was asked for here, and not by the client.
    """
    turn.forwarded = True
    parts = turn.served.parts
    try:
        turn.admission = await turn.state.opened.ladder.admit(turn.client, turn.asked.requests, parts, forwarded=True)
        call = ForwardedCall(
            parts, turn.admission.requests[0], 0, records=turn.records, timings=turn.timings, role=role
        )
        await call.open()
    except asyncio.CancelledError:
        await turn.over("cancelled")
        raise
    except GktError as exc:
        code = await turn.fail(exc)
        await turn.over("error" if error_body(exc)[0] >= 500 else "refused", code)
        return
    passage = _Passage(turn, call, said, receive, hides_usage=hides_usage)
    cause: Exception | None = None
    try:
        await app(scope, receive, passage.send)
    except (ClientDisconnect, OSError):
        raise
    except Exception as exc:
        cause = exc
        raise
    finally:  # here and not with the last byte: servers cancel what still runs then
        await asyncio.shield(asyncio.ensure_future(passage.over(cause)))


class _Passage:
    """vLLM's answer on its way to the client. Its end waits until the call is on record."""

    def __init__(
        self, turn: Turn, call: ForwardedCall, said: Mapping[str, str], receive: Replay, *, hides_usage: bool
    ) -> None:
        self._turn = turn
        self._call = call
        self._said = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in said.items()]
        self._receive = receive
        self._hides_usage = hides_usage
        self._head: MutableMapping[str, Any] = {}
        self._streams = False
        self._unread = b""
        """Of a stream the beginning of an event, of another answer all that came."""
        self._held: list[bytes] = []
        """Events that may be the last ones."""
        self._error = ""
        """What vLLM said within a stream of its failure."""
        self._ended = False
        self._outcome: tuple[Literal["ok", "error", "refused", "cancelled"], str] = "cancelled", ""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """vLLM's own ``send``."""
        if self._ended:
            return
        if message["type"] == "http.response.start":
            self._head = {**message, "headers": [*message.get("headers", ()), *self._said]}
            kind = next((value for name, value in self._head["headers"] if name.lower() == b"content-type"), b"")
            self._streams = kind.startswith(b"text/event-stream")
            if self._streams:
                self._turn.begun = True
                await self._turn.send(self._head)
            return
        self._unread += message.get("body", b"")
        more = message.get("more_body", False)
        if self._streams:
            await self._pass_events(more=more)
        elif not more:
            await self._pass_whole()

    async def over(self, cause: Exception | None) -> None:
        """Nothing more comes. ``cause``: what vLLM's application raised, which its server answers."""
        if not self._ended:
            if cause is None:  # the client has gone before its answer was complete
                await self._call.close("cancelled")
            else:
                await self._call.close("failed", EngineError(f"vLLM failed: {cause!r}"))
                self._outcome = "error", "upstream_failed"
        await self._turn.over(*self._outcome)

    # ------------------------------------------------------------------------------------------------- whole

    async def _pass_whole(self) -> None:
        status = self._head["status"]
        if status >= 500:
            await self._end(EngineError(f"vLLM answered with status {status}"), "upstream_failed")
        elif status >= 400:
            await self._end(EngineError(f"vLLM answered with status {status}", refused=True), "upstream_refused")
        elif (found := as_object(self._unread)) is not None:
            self._call.hear(as_chunk(found))
            await self._end()
        elif not self._receive.gone:  # where a client has gone vLLM ends the response with nothing
            await self._end()

    # ------------------------------------------------------------------------------------------------ stream

    async def _pass_events(self, *, more: bool) -> None:
        *events, self._unread = self._unread.split(_EVENT_ENDS)
        out: list[bytes] = []
        done = said = False
        for event in events:
            found = event_data(event)
            if found is None:
                done = done or event.strip() == _DONE
            elif self._hears_what_nobody_asked_for(found):
                continue
            said = said or found is not None
            if done or (found is not None and _may_be_last(found)):
                self._held.append(event + _EVENT_ENDS)
            else:
                out += [*self._held, event + _EVENT_ENDS]
                self._held = []
        if said and self._turn.first_text is None:  # a comment keeps a connection alive, and says nothing
            self._turn.first_text = time.perf_counter()
        if out:
            await self._turn.write(b"".join(out))
        if self._error and (done or not more):
            await self._end(EngineError(self._error), "upstream_failed")
        elif done or (not more and self._call.complete):
            await self._end()
        elif not more and not self._receive.gone:
            await self._end(EngineError("vLLM ended a stream too early"), "upstream_truncated")

    def _hears_what_nobody_asked_for(self, found: Mapping[str, Any]) -> bool:
        self._call.hear(as_chunk(found))
        if isinstance(error := found.get("error"), Mapping):
            self._error = str(error.get("message"))
        if not (self._hides_usage and is_usage_alone(found)):
            return False
        if self._held and found.get("system_fingerprint"):  # without usage it is told one chunk earlier
            last = {**(event_data(self._held[-1]) or {}), "system_fingerprint": found["system_fingerprint"]}
            self._held[-1] = event_of(last)
        return True

    # --------------------------------------------------------------------------------------------------- end

    async def _end(self, error: EngineError | None = None, code: str = "") -> None:
        """Put the call on record, then let go of what is held."""
        self._ended = True
        try:
            await self._call.close("failed" if error else "final", error)
        except GktError as exc:  # the ledger cannot be written
            self._outcome = "error", await self._turn.fail(exc)
            return
        if not self._turn.begun:
            self._turn.begun = True
            await self._turn.send(self._head)
        self._outcome = "refused" if error and error.refused else "error" if error else "ok", code
        await self._turn.write(b"".join([*self._held, self._unread]), more=False)


def _may_be_last(found: Mapping[str, Any]) -> bool:
    """Such an event waits for the next one, or for the record."""
    choices = as_chunk(found).get("choices")
    return choices == [] or any(choice.get("finish_reason") for choice in choices or ())
