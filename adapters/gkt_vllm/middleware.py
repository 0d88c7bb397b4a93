"""Guidance as a layer of vLLM's own server, below its authentication: another driver of the guidance machine.

What it does not understand, and what text from two models cannot give, goes to vLLM untouched, with a header that says
so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from gkt_plugins.errors import ConfigError
from gkt_plugins.gateway.answering import finish
from gkt_plugins.gateway.limits import read_body
from gkt_plugins.gateway.turns import Turn, send_error
from gkt_plugins.openai_wire.errors import InvalidRequest
from gkt_plugins.openai_wire.requests import GUIDANCE_HEADER, Asked, Route, parse
from gkt_vllm.asked import EPSILON, GAMMA, check_epsilon, check_gamma
from gkt_vllm.inner import UnderWay, under_way
from gkt_vllm.serving import Guidance

__all__ = ["GuidanceMiddleware"]

_ROUTES: Mapping[str, Route] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
_MAX_BODY_BYTES = 64 * 2**20
_SHARED = frozenset({"frequency_penalty", "presence_penalty", "reasoning_effort", "verbosity"})
"""Options that a teacher may know; all others that OpenAI's API does not have are vLLM's own."""


class GuidanceMiddleware:
    """``app``: what lies below. Until the server is ready, and for other addresses, it is called as if alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            if (opened := getattr(scope["app"].state, "gkt", None)) is not None:
                await opened.stack.aclose()
            return
        route = _ROUTES.get(scope.get("path", "")) if scope["type"] == "http" else None
        guidance: Guidance | None = getattr(scope["app"].state, "gkt", None) if route else None
        if route is None or guidance is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        try:
            data = await read_body(scope, receive, max_bytes=_MAX_BODY_BYTES)
        except ClientDisconnect:
            return
        try:
            asked = _read(route, data, scope, guidance)
        except ConfigError as exc:  # leniency beyond the bound, or a gamma that is none
            await send_error(send, InvalidRequest(str(exc), param="vllm_xargs", code="invalid_value"))
            return
        if isinstance(asked, str):
            await self._app(scope, _Replay(data, receive), _marked(send, asked))
            return
        own, asked = _apart(asked)
        guidance.transport.app = self._app
        token = under_way.set(UnderWay(scope, own))
        try:
            turn = Turn(guidance.state, scope, receive, send, asked, guidance.served, guidance.client, began=began)
            await finish(turn)
        finally:
            under_way.reset(token)


def _read(route: Route, data: bytes, scope: Scope, guidance: Guidance) -> Asked | str:
    """The request, or why it goes to vLLM as it is.

    :raises ConfigError: it asks for what the operator does not allow.
    """
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return "not JSON"
    if not isinstance(body, dict):
        return "not an object"
    _check_wishes(body.get("vllm_xargs"), guidance.least)
    if body.get("model", guidance.names[0]) not in guidance.names:
        return "another model"
    if body.get("use_beam_search"):
        return "beam search"
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        return "the answer has begun already"
    said = next((value for name, value in scope["headers"] if name == GUIDANCE_HEADER.encode()), None)
    headers = None if said is None else {GUIDANCE_HEADER: said.decode("latin-1")}
    try:
        asked = parse(
            route,
            {"model": guidance.names[0], **body},
            headers=headers,
            default_sampling=guidance.served.sampling,
        )
    except InvalidRequest:
        return "left to vLLM"  # whose own answer to a wrong request is the one that its clients know
    if asked.features:
        return ", ".join(sorted(asked.features))
    return asked


def _check_wishes(wishes: object, least: float) -> None:
    if isinstance(wishes, dict):
        if EPSILON in wishes:
            check_epsilon(wishes[EPSILON], least)
        if GAMMA in wishes:
            check_gamma(wishes[GAMMA])


def _apart(asked: Asked) -> tuple[dict[str, Any], Asked]:
    """vLLM's own options, and the request without them."""
    sampling = asked.requests[0].sampling
    own = {key: value for key, value in sampling.extra.items() if key not in _SHARED}
    if not own:
        return own, asked
    shared = {key: value for key, value in sampling.extra.items() if key in _SHARED}
    requests = tuple(replace(one, sampling=replace(one.sampling, extra=shared)) for one in asked.requests)
    return own, replace(asked, requests=requests)


class _Replay:
    """A body that has been read, once more; then whatever the server receives."""

    def __init__(self, data: bytes, receive: Receive) -> None:
        self._unread = [data]
        self._receive = receive

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._unread:
            return {"type": "http.request", "body": self._unread.pop(), "more_body": False}
        return await self._receive()


def _marked(send: Send, why: str) -> Send:
    async def marked(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            said = [(b"x-gkt-route", b"bypassed"), (b"x-gkt-bypass", why.encode("latin-1", "replace"))]
            message = {**message, "headers": [*message.get("headers", ()), *said]}
        await send(message)

    return marked
