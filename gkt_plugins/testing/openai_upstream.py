"""An OpenAI-compatible endpoint that does as it is told, over real HTTP on the loopback interface::

    with Upstream("The cat sat on the mat.") as upstream:
        engine = …base_url=upstream.url, model=upstream.model…

    Upstream([Reply("", status=429, retry_after_s=0.1), "Fine now."])        # one after the other, the last for ever
    Upstream(Reply("The cat sat on the mat.", fault=Fault(drop_after=3)))      # cut after three tokens
    Upstream(lambda asked: Reply("meow", first_token_s=0.05, per_token_s=0.01))

A *token* is a word with the white space before it. A text is a *whole* answer: where the request brings its beginning,
the upstream goes on from there, as a model would that had written it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

from gkt_plugins.testing._http_server import HttpRequest, HttpServer, Wire
from gkt_plugins.testing._openai_frames import Answering, frame, logprobs_of
from gkt_plugins.testing.engines import by_words

__all__ = ["Fault", "Received", "Reply", "Script", "Upstream"]

Continues: TypeAlias = Literal["completion", "continue_final_message", "prefix", "partial", "trailing"]


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


class Upstream:
    """The endpoint. Use it as a ``with`` block; it serves on a thread of its own."""

    def __init__(
        self,
        script: Script,
        *,
        model: str = "upstream-model",
        key: str | None = None,
        continues: Sequence[Continues] = ("completion", "continue_final_message"),
        refuses: Sequence[str] = (),
        routes: Sequence[Literal["chat", "completions"]] = ("chat", "completions"),
        models_status: int = 200,
        wraps_completions: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """
        :param key: what ``authorization`` must carry; None asks for none.
        :param continues: ways of going on from a given beginning that it understands: raw prompts, or the chat fields
            ``continue_final_message`` (with ``add_generation_prompt``), ``prefix`` and ``partial`` (in the message), or
            a ``trailing`` message of the assistant without any. A field that it does not understand is ignored.
        :param wraps_completions: it puts raw prompts into its chat template.
        :param refuses: fields that it answers with status 400.
        :param tls: speaks HTTPS with it.
        :param models_status: what ``GET /models`` answers with.
        """
        self.model = model
        self.received: list[Received] = []
        """Every request for an answer, in order of arrival."""
        self._script = script
        self._key = key
        self._continues = frozenset(continues)
        self._refuses = tuple(refuses)
        self._routes = frozenset(routes)
        self._models_status = models_status
        self._wraps_completions = wraps_completions
        self._changed = threading.Condition()
        self._server = HttpServer(self._answer, on_close=self._closed, tls=tls)
        self._scheme = "http" if tls is None else "https"
        self.port = 0

    @property
    def url(self) -> str:
        """What a client calls its ``base_url``."""
        return f"{self._scheme}://127.0.0.1:{self.port}/v1"

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._server.connections)

    def __enter__(self) -> Self:
        self.port = self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    def close_connections(self) -> None:
        """Close every connection, as a server does with idle ones."""
        self._server.close_connections()

    def wait_until(self, condition: Callable[[Upstream], bool], *, timeout_s: float = 10.0) -> bool:
        """Block until ``condition`` holds, looking each time that something happened; False: it never did."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), timeout_s)

    def _closed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # ----------------------------------------------------------------------------------------------- the API

    async def _answer(self, request: HttpRequest, wire: Wire) -> None:
        if self._key is not None and request.headers.get("authorization") != f"Bearer {self._key}":
            await _refuse(wire, 401, f"Incorrect API key provided: {request.headers.get('authorization', '')}.")
        elif request.method == "GET" and request.path == "/v1/models":
            listing = {"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "upstream"}]}
            if self._models_status == 200:
                await wire.json(200, listing)
            else:
                await _refuse(wire, self._models_status, "no list of models today")
        elif request.method == "POST" and request.path in ("/v1/chat/completions", "/v1/completions"):
            route = "chat" if "chat" in request.path else "completions"
            if route in self._routes:
                await self._generate(route, request, wire)
            else:
                await _refuse(wire, 404, f"no such route: {request.path}")
        else:
            await _refuse(wire, 404, f"no such route: {request.path}")

    async def _generate(self, route: str, request: HttpRequest, wire: Wire) -> None:
        body = json.loads(request.body)
        received = Received(route, body, request.headers, arrived=time.perf_counter(), peer=request.peer)
        with self._changed:
            number = len(self.received)
            self.received.append(received)
            self._changed.notify_all()
        try:
            if refused := next((name for name in self._refuses if name in body), None):
                param = {"param": refused, "code": "unsupported_parameter"}
                await _refuse(wire, 400, f"Unsupported parameter: {refused!r}", error=param)
            elif body.get("model") != self.model:
                await _refuse(wire, 404, f"The model {body.get('model')!r} does not exist")
            else:
                reply = self._reply(number, received)
                await _Run(reply, received, self._answering(reply, received)).play(wire)
            received.finished = time.perf_counter()
        except asyncio.CancelledError:
            received.disconnected = time.perf_counter()
            raise
        finally:
            with self._changed:
                self._changed.notify_all()

    def _reply(self, number: int, received: Received) -> Reply:
        script = self._script
        if callable(script):
            chosen: str | Reply = script(received)
        elif isinstance(script, str | Reply):
            chosen = script
        else:
            chosen = script[min(number, len(script) - 1)]
        return Reply(chosen) if isinstance(chosen, str) else chosen

    def _answering(self, reply: Reply, received: Received) -> Answering:
        prompt, begun = self._prompt(received)
        rest = reply.text
        if begun and reply.text.startswith(begun):
            rest = reply.text[len(begun) :]
        elif received.route == "completions" and "completion" in self._continues:
            ends = (end for end in range(min(len(prompt), len(rest)), 0, -1) if prompt.endswith(rest[:end]))
            rest = rest[next(ends, 0) :]
        return Answering.of(received.route, self.model, received.body, rest, reply.finish_reason, len(by_words(prompt)))

    def _prompt(self, received: Received) -> tuple[str, str]:
        """What a model would be given, and the beginning of the answer in it."""
        body = received.body
        if received.route == "completions":
            prompt = body.get("prompt", "")
            prompt = str(prompt[0]) if isinstance(prompt, list) else str(prompt)
            return (f"<user> {prompt}\n<assistant>" if self._wraps_completions else prompt), ""
        messages = body["messages"]
        turns = [f"<{turn['role']}> {turn.get('content')}\n" for turn in messages]
        last = messages[-1]
        asked = {name for name in ("prefix", "partial") if last.get(name)}
        if body.get("continue_final_message") and not body.get("add_generation_prompt", True):
            asked.add("continue_final_message")
        if received.prefix and (asked | {"trailing"}) & self._continues:
            turns[-1] = turns[-1].rstrip("\n")
            return "".join(turns), received.prefix
        return "".join(turns) + "<assistant>", ""


class _Run:
    """One reply on its way out, with all that goes wrong."""

    def __init__(self, reply: Reply, received: Received, answering: Answering) -> None:
        self._reply = reply
        self._fault = reply.fault
        self._received = received
        self._answering = answering
        self._frames = 0

    async def play(self, wire: Wire) -> None:
        reply, fault = self._reply, self._fault
        if fault.hang_up:
            wire.cut()
            return
        if fault.silent:
            await asyncio.Event().wait()
        if reply.first_token_s:
            await asyncio.sleep(reply.first_token_s)
        if reply.status != 200:
            headers = {} if reply.retry_after_s is None else {"retry-after": f"{reply.retry_after_s:g}"}
            await _refuse(wire, reply.status, f"status {reply.status}, as scripted", headers, reply.error)
            return
        wire.split = fault.split
        await (self._stream(wire) if self._received.body.get("stream") else self._whole(wire))

    async def _whole(self, wire: Wire) -> None:
        tokens = self._answering.tokens
        if self._reply.per_token_s:
            await asyncio.sleep(self._reply.per_token_s * max(0, len(tokens) - 1))
        body = self._answering.whole(self._reply.reasoning, dict(self._reply.message or {}))
        if self._reply.usage != "never":
            body["usage"] = self._usage(len(tokens))
        data = json.dumps(body, ensure_ascii=False).encode()
        fault = self._fault
        if fault.hang_after is not None:
            await asyncio.Event().wait()
        if fault.error_after is not None:
            await _refuse(wire, 500, "the engine died")
            return
        if fault.corrupt_after is not None:
            data = data.replace(b'"choices"', b'"choi', 1)
        if fault.invalid_utf8_after is not None:
            data = data.replace(b'"choices"', b'"choices\xff"', 1)
        cut = fault.drop_after is not None or fault.truncate_after is not None
        wire.head(200, {"content-type": "application/json"}, length=len(data))
        await wire.send(data[: len(data) // 2] if cut else data)
        self._received.sent = len(tokens)
        wire.cut() if cut else wire.end()

    async def _stream(self, wire: Wire) -> None:
        reply, fault, answering = self._reply, self._fault, self._answering
        wire.head(200, {"content-type": "text/event-stream"})
        if answering.route == "chat":
            await self._send(wire, answering.chunk({"role": "assistant", "content": ""}, 0))
        for word in by_words(reply.reasoning):
            await self._send(wire, answering.chunk({"reasoning_content": word}, 0))
        for choice in range(answering.n):
            for number, token in enumerate(answering.tokens):
                if await self._broken(wire, number):
                    return
                if reply.per_token_s and number:
                    await asyncio.sleep(reply.per_token_s)
                piece: Any = {"content": token} if answering.route == "chat" else token
                logprobs = logprobs_of(answering.route, [token], answering.top_logprobs)
                await self._send(wire, answering.chunk(piece, choice, logprobs=logprobs, tokens=number + 1), number + 1)
                self._received.sent += 1
            if await self._broken(wire, len(answering.tokens)):
                return
            if fault.reason:
                last: Any = {} if answering.route == "chat" else ""
                chunk = answering.chunk(last, choice, reason=answering.reason)
                await self._send(wire, chunk, len(answering.tokens))
        asked = (self._received.body.get("stream_options") or {}).get("include_usage")
        if asked and reply.usage in ("asked", "wrong"):
            await self._send(wire, answering.head() | {"choices": [], "usage": self._usage(len(answering.tokens))})
        if fault.done:
            await self._write(wire, frame("[DONE]", reply.line_end))
        wire.end()

    async def _send(self, wire: Wire, chunk: dict[str, Any], tokens: int = 0) -> None:
        reply = self._reply
        if reply.usage == "every_chunk":
            chunk["usage"] = self._usage(tokens)
        if reply.obfuscation:
            chunk["obfuscation"] = f"{self._frames * 2654435761 % 2**32:x}"
        data = json.dumps(chunk, ensure_ascii=False)
        number = self._frames if reply.event_ids else None
        self._frames += 1
        await self._write(
            wire, frame(data, reply.line_end, number=number, comment=reply.comments, multi_line=reply.multi_line)
        )

    async def _write(self, wire: Wire, data: bytes) -> None:
        await wire.send(data)
        if self._fault.duplicate:
            await wire.send(data)

    async def _broken(self, wire: Wire, number: int) -> bool:
        """Do what the script says goes wrong after ``number`` tokens; True: nothing follows."""
        fault, end = self._fault, self._reply.line_end
        if number == fault.hang_after:
            await asyncio.Event().wait()
        if number == fault.drop_after:
            wire.cut()
            return True
        if number == fault.truncate_after:
            whole = frame(json.dumps(self._answering.chunk({"content": "lost"}, 0)), end)
            await wire.send(whole[: len(whole) // 2])
            wire.end()
            return True
        if number == fault.corrupt_after:
            await wire.send(frame('{"choices": [{"index": 0, "delta": {"content": "los', end))
        if number == fault.invalid_utf8_after:
            await wire.send(frame('{"choices": [{"index": 0, "delta": {"content": "@"}}]}', end).replace(b"@", b"\xff"))
        if number == fault.error_after:
            await wire.send(frame(json.dumps({"error": {"message": "the engine died", "code": 500}}), end))
        return False

    def _usage(self, tokens: int) -> dict[str, Any]:
        if self._reply.usage == "wrong":
            return {"prompt_tokens": -3, "completion_tokens": 10**9, "total_tokens": 1}
        return self._answering.usage(tokens)


async def _refuse(
    wire: Wire,
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    error: Mapping[str, Any] | None = None,
) -> None:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    await wire.json(status, {"error": {"message": message, "type": kind, "param": None, "code": None, **(error or {})}},
                    headers)  # fmt: skip
