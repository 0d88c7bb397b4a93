"""A text-generation-inference server that does as it is told, and holds every message against TGI's own contract::

    with TGIServer("The cat sat on the mat.") as server:
        engine = …base_url=server.url…
    assert server.violations == []

    TGIServer(TGIReply("The cat sat.", fails_after=2, error_type="generation"))
    TGIServer(lambda inputs: "meow" if "cat" in inputs else "woof")

A *token* is a word with the white space before it; ``<s>`` and the like are one too. A text is a *whole* answer: where
the inputs end with its beginning, the server goes on from there, as a model would that had written it. It does as the
real one does: a stop string is part of the text, ``/generate`` puts a beginning-of-sequence token before whatever it
gets, chat templates bring their own, and the end of the answer is a special token.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from gkt_plugins.testing._http_server import HttpRequest, HttpServer, Wire
from gkt_plugins.testing.engines import by_words
from gkt_plugins.testing.tgi_contract import ROUTES, Contract

__all__ = ["TGIReceived", "TGIReply", "TGIServer"]

_SPECIAL = re.compile(r"(<s>|</s>|<\|\w+\|>)")
_INFO = {
    "model_id": "models/scripted",
    "version": "3.3.6",
    "router": "text-generation-router",
    "max_concurrent_requests": 128,
    "max_best_of": 2,
    "max_stop_sequences": 4,
    "max_input_tokens": 1024,
    "max_total_tokens": 2048,
    "validation_workers": 2,
    "max_client_batch_size": 4,
}
_STATUS = {"generation": 424, "overloaded": 429, "validation": 422, "incomplete_generation": 500}


@dataclass(frozen=True, slots=True)
class TGIReply:
    """What the server does with one request. Places are counted in tokens; None: it does not happen."""

    text: str = ""
    fails_after: int | None = None
    """An error of ``error_type``; 0: as the response's status, where nothing was sent yet."""
    error_type: str = "generation"
    hangs_after: int | None = None
    """Nothing more comes, until the client goes."""
    drops_after: int | None = None
    """The connection is cut."""
    ends: bool = True
    """False: the last event, with the details, is left out."""


@dataclass(frozen=True, slots=True)
class TGIReceived:
    """A request that arrived."""

    route: str
    body: Any
    headers: Mapping[str, str]
    token_texts: tuple[str, ...] = ()
    """What the model would have read, beginning-of-sequence included."""


class TGIServer:
    """Use it as a ``with`` block, or call :meth:`start` and :meth:`stop`."""

    def __init__(
        self,
        script: str | TGIReply | Callable[[str], str | TGIReply],
        *,
        adds_bos: bool = True,
        template_bos: bool = True,
        fast_tokenizer: bool = True,
        counts_chat_prompts: bool = True,
        contract: Contract | None = None,
    ) -> None:
        """``script``: one reply for all, or a function of the inputs, templated where they are a chat.

        ``adds_bos``: the tokenizer puts ``<s>`` first. ``template_bos``: the chat template does. ``fast_tokenizer``:
        False answers 404 where tokens are asked for. ``counts_chat_prompts``: False says 0 prompt tokens of a chat
        that does not stream, as servers without prefill details do.
        """
        self.received: list[TGIReceived] = []
        self.violations: list[str] = []
        """What the contract forbids, of requests and of our own responses."""
        self.cancelled = 0
        """Responses that the client did not wait for."""
        self._script = script
        self._adds_bos = adds_bos
        self._template_bos = template_bos
        self._fast_tokenizer = fast_tokenizer
        self._counts_chat_prompts = counts_chat_prompts
        self._contract = contract or Contract()
        self._server = HttpServer(self._answer)
        self.url = ""

    def start(self) -> Self:
        self.url = f"http://127.0.0.1:{self._server.start()}"
        return self

    def stop(self) -> None:
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ------------------------------------------------------------------------------------------- requests

    async def _answer(self, request: HttpRequest, wire: Wire) -> None:
        route, body = request.path, _json(request.body)
        if request.method != ROUTES.get(route, "").upper():
            await wire.json(404, {"error": f"no route {request.method} {route}", "error_type": "not_found"})
            return
        if route == "/info":
            await self._json(wire, route, 200, _INFO)
            return
        wrong = self._contract.wrong_request(route, body)
        inputs = self._templated(body) if "messages" in (body or {}) else (body or {}).get("inputs", "")
        chat = "chat" in route
        tokens = self._tokens(inputs, add=self._adds_bos and not chat) if wrong is None else []
        self.received.append(TGIReceived(route, body, request.headers, tuple(tokens)))
        if wrong is not None:
            self.violations.append(f"request to {route}: {wrong}")
            await self._error(wire, route, "validation", f"Input validation error: {wrong}")
        elif "tokenize" in route:
            await self._tokenized(wire, route, inputs, tokens)
        else:
            try:
                await self._generated(wire, route, body, inputs, len(tokens))
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

    def _templated(self, body: Mapping[str, Any]) -> str:
        turns = "".join(f"<|{turn['role']}|>{turn.get('content') or ''}</s>" for turn in body["messages"])
        return ("<s>" if self._template_bos else "") + turns + "<|assistant|>"

    def _tokens(self, text: str, *, add: bool) -> list[str]:
        parts = [[part] if _SPECIAL.fullmatch(part) else by_words(part) for part in _SPECIAL.split(text)]
        return ["<s>"] * add + [token for part in parts for token in part]

    async def _tokenized(self, wire: Wire, route: str, inputs: str, tokens: list[str]) -> None:
        if not self._fast_tokenizer:
            await self._json(wire, route, 404, {"error": "No fast tokenizer", "error_type": "no fast tokenizer"})
            return
        simple, at = [], 0
        for place, token in enumerate(tokens):
            added = place == 0 and len("".join(tokens)) > len(inputs)
            shown = "" if added else token
            simple.append({"id": _id(token), "text": shown, "start": at, "stop": at + len(shown)})
            at += len(shown)
        chat = {"tokenize_response": simple, "templated_text": inputs}
        await self._json(wire, route, 200, chat if route == "/chat_tokenize" else simple)

    async def _generated(self, wire: Wire, route: str, body: Any, inputs: str, prompt_tokens: int) -> None:
        asked = body.get("parameters") or {}
        said = self._script(inputs) if callable(self._script) else self._script
        reply = TGIReply(said) if isinstance(said, str) else said
        chat = route == "/v1/chat/completions"
        limit = body.get("max_tokens") if chat else asked.get("max_new_tokens")
        stops = (body.get("stop") if chat else asked.get("stop")) or []
        tokens, reason = _written(_rest(reply.text, inputs), 1024 if limit is None else limit, stops)
        if reply.fails_after == 0 and reply.error_type in ("overloaded", "validation"):
            await self._error(wire, route, reply.error_type, f"{reply.error_type}, as the script says")
        elif route == "/generate_stream" or (chat and body.get("stream")):
            await self._streamed(wire, route, body, reply, tokens, reason, prompt_tokens)
        else:
            if reply.hangs_after is not None:
                await asyncio.Event().wait()
            if reply.drops_after is not None:
                wire.head(200, {"content-type": "application/json"})
                wire.cut()
            elif reply.fails_after is not None:
                await self._error(wire, route, reply.error_type, f"{reply.error_type}, as the script says")
            elif chat:
                counted = prompt_tokens if self._counts_chat_prompts else 0
                await self._json(wire, route, 200, _chat_reply(tokens, reason, counted))
            else:
                details = {"finish_reason": reason, "generated_tokens": len(tokens), "prefill": [], "seed": 1}
                text = "".join(token for token in tokens if token != "</s>")
                full = {"generated_text": text, "details": details | {"tokens": list(map(_token, tokens))}}
                await self._json(wire, route, 200, full)

    async def _streamed(
        self, wire: Wire, route: str, body: Any, reply: TGIReply, tokens: list[str], reason: str, prompt_tokens: int
    ) -> None:
        wire.head(200, {"content-type": "text/event-stream"})
        text = "".join(token for token in tokens if token != "</s>")
        for number, token in enumerate(tokens):
            if number in (reply.fails_after, reply.drops_after, reply.hangs_after):
                break
            last = number == len(tokens) - 1
            if route == "/generate_stream":
                event: dict[str, Any] = {"index": number + 1, "token": _token(token), "generated_text": None}
                details = {"finish_reason": reason, "generated_tokens": len(tokens), "input_length": prompt_tokens}
                event |= {"generated_text": text, "details": details} if last else {"details": None}
            else:
                event = _chat_event(token, reason if last else None)
            if not last or reply.ends:
                await self._event(wire, route, event)
        if reply.hangs_after is not None:
            await asyncio.Event().wait()
        if reply.drops_after is not None:
            wire.cut()
            return
        if reply.fails_after is not None:
            error = {"error": f"{reply.error_type}, as the script says", "error_type": reply.error_type}
            await wire.send(b"data:" + json.dumps(error).encode() + b"\n\n")
        elif route != "/generate_stream":
            if (body.get("stream_options") or {}).get("include_usage"):
                await self._event(wire, route, _chat_event(None, None) | {"usage": _usage(prompt_tokens, len(tokens))})
            await wire.send(b"data: [DONE]\n\n")
        wire.end()

    # ------------------------------------------------------------------------------------------ responses

    async def _json(self, wire: Wire, route: str, status: int, body: Any) -> None:
        if wrong := self._contract.wrong_response(route, body, status=status):
            self.violations.append(f"response of {route}: {wrong}")
        await wire.json(status, body)

    async def _error(self, wire: Wire, route: str, error_type: str, message: str) -> None:
        await wire.json(_STATUS[error_type], {"error": message, "error_type": error_type})

    async def _event(self, wire: Wire, route: str, event: Any) -> None:
        if wrong := self._contract.wrong_response(route, event, kind="text/event-stream"):
            self.violations.append(f"event of {route}: {wrong}")
        await wire.send(b"data:" + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _rest(text: str, inputs: str) -> str:
    """What comes after the longest beginning of ``text`` that the inputs end with."""
    for length in range(len(text), 0, -1):
        if inputs.endswith(text[:length]):
            return text[length:]
    return text


def _written(text: str, limit: int, stops: list[str]) -> tuple[list[str], str]:
    """The tokens within the limit, up to and with a stop string, and why they end there."""
    tokens: list[str] = []
    for token in by_words(text):
        if len(tokens) == limit:
            return tokens, "length"
        tokens.append(token)
        if any(stop in "".join(tokens) for stop in stops):
            return tokens, "stop_sequence"
    return (tokens, "length") if len(tokens) == limit else ([*tokens, "</s>"], "eos_token")


def _id(token: str) -> int:
    return sum(token.encode()) + len(token)


def _token(text: str) -> dict[str, Any]:
    return {"id": _id(text), "text": text, "logprob": -0.5, "special": bool(_SPECIAL.fullmatch(text))}


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def _chat_reply(tokens: list[str], reason: str, prompt_tokens: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(token for token in tokens if token != "</s>")}
    choice = {"index": 0, "message": message, "finish_reason": "length" if reason == "length" else "stop"}
    return _object("chat.completion") | {"choices": [choice], "usage": _usage(prompt_tokens, len(tokens))}


def _chat_event(token: str | None, reason: str | None) -> dict[str, Any]:
    """A chunk of a chat; without a token it is the one that carries the usage."""
    delta = {"role": "assistant", "content": "" if token == "</s>" else token}
    finish = reason and ("length" if reason == "length" else "stop")
    choices = [] if token is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return _object("chat.completion.chunk") | {"choices": choices, "usage": None}


def _object(kind: str) -> dict[str, Any]:
    return {"object": kind, "id": "", "created": 1706270835, "model": "scripted", "system_fingerprint": "3.3.6"}
