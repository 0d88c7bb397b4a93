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
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self, TypeAlias

from gkt_plugins.testing._http_server import HttpRequest, HttpServer, Wire
from gkt_plugins.testing._openai_frames import Answering
from gkt_plugins.testing._openai_run import Run, refuse
from gkt_plugins.testing._openai_script import Fault, Received, Reply, Script
from gkt_plugins.testing.engines import by_words

__all__ = ["Fault", "Received", "Reply", "Script", "Upstream"]

Continues: TypeAlias = Literal["completion", "continue_final_message", "prefix", "partial", "trailing"]


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
            await refuse(wire, 401, f"Incorrect API key provided: {request.headers.get('authorization', '')}.")
        elif request.method == "GET" and request.path == "/v1/models":
            listing = {"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "upstream"}]}
            if self._models_status == 200:
                await wire.json(200, listing)
            else:
                await refuse(wire, self._models_status, "no list of models today")
        elif request.method == "POST" and request.path in ("/v1/chat/completions", "/v1/completions"):
            route = "chat" if "chat" in request.path else "completions"
            if route in self._routes:
                await self._generate(route, request, wire)
            else:
                await refuse(wire, 404, f"no such route: {request.path}")
        else:
            await refuse(wire, 404, f"no such route: {request.path}")

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
                await refuse(wire, 400, f"Unsupported parameter: {refused!r}", error=param)
            elif body.get("model") != self.model:
                await refuse(wire, 404, f"The model {body.get('model')!r} does not exist")
            else:
                reply = self._reply(number, received)
                await Run(reply, received, self._answering(reply, received)).play(wire)
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
