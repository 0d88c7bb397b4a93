"""A layer of vLLM's own server, below its authentication: guides what can be guided, and puts all on record.

It is another driver of the guidance machine. What it does not understand, and what text from two models cannot give,
goes to vLLM untouched, with a header that says so.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from gkt_plugins.errors import ConfigError
from gkt_plugins.gateway.answering import finish
from gkt_plugins.gateway.limits import read_body
from gkt_plugins.gateway.refusals import RefusedError
from gkt_plugins.gateway.turns import Turn, send_error
from gkt_plugins.openai_wire.errors import InvalidRequest, error_code
from gkt_plugins.openai_wire.requests import GUIDANCE_HEADER, Asked, Route, parse
from gkt_vllm.bounds import wishes
from gkt_vllm.bypass import Replay, as_asked, asking_for_usage, identity_of, pass_through
from gkt_vllm.inner import UnderWay, under_way
from gkt_vllm.lora import adapter_of
from gkt_vllm.own_words import apart, cannot_be_shared, with_defaults
from gkt_vllm.serving import Serving
from gkt_vllm.spoken import ADDRESSES, as_object

__all__ = ["GktMiddleware"]

_ROUTES: Mapping[str, Route] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
"""What can be guided."""
_MAX_BODY_BYTES = 2**30
_BODY_TIMEOUT_S = 600.0
"""vLLM itself has no bounds for these."""


class GktMiddleware:
    """``app``: what lies below. Until the server is ready, and for other addresses, it is called as if alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _closing_first(send, scope["app"].state))
            return
        path = _path(scope)
        serving: Serving | None = getattr(scope["app"].state, "gkt", None) if path in ADDRESSES else None
        if serving is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        try:
            data = await read_body(scope, receive, max_bytes=_MAX_BODY_BYTES, timeout_s=_BODY_TIMEOUT_S)
            body = as_object(data)
            epsilon = serving.bounds.check(wishes(body or {}))
            adapter = adapter_of(body or {}, scope["app"].state)
            read = _read(path, body, adapter, scope, serving) if serving.guides else ""
        except ClientDisconnect:
            return
        except (RefusedError, InvalidRequest) as exc:
            serving.state.metrics.refused(await send_error(send, exc))
            return
        except ConfigError as exc:  # leniency beyond the bound, or a gamma that is none
            refusal = InvalidRequest(str(exc), param="vllm_xargs", code="invalid_value")
            serving.state.metrics.refused(error_code(refusal))
            await send_error(send, refusal)
            return
        if adapter:
            serving.adapters.names.add(adapter)
        said = {}
        note = ""
        if epsilon < 1:
            rule = serving.bounds.rule
            serving.lenient.labels(rule).inc()
            said["x-gkt-leniency"] = f"{rule} {epsilon:g}"
            note = f"lenient: drafts are verified by the rule {rule!r} with epsilon {epsilon:g}, which is not exact"
        if isinstance(read, Asked):
            asked = replace(read, notes=(*read.notes, note)) if note else read
            await self._guide(serving, scope, receive, _marked(send, said, serving), asked, adapter, began)
            return
        if read:
            said |= {"x-gkt-route": "bypassed", "x-gkt-bypass": read}
        await self._pass_through(serving, scope, Replay(data, receive), send, body or {}, adapter, said, began)

    async def _guide(
        self, serving: Serving, scope: Scope, receive: Receive, send: Send, asked: Asked, adapter: str, began: float
    ) -> None:
        words, asked = apart(asked, fixed=serving.served.fixed, preset=serving.preset)
        serving.transport.app = self._app
        turn = Turn(serving.state, scope, receive, send, asked, serving.served, serving.client, began=began)
        await _answered(turn, finish(turn), UnderWay(scope, asked.request_id, adapter, words))

    async def _pass_through(
        self,
        serving: Serving,
        scope: Scope,
        receive: Replay,
        send: Send,
        body: Mapping[str, Any],
        adapter: str,
        said: Mapping[str, str],
        began: float,
    ) -> None:
        asked, own_id = as_asked(
            _path(scope), body, scope["headers"], model=serving.names[0], max_tokens=serving.max_tokens
        )
        asking = None if serving.usage_unasked or _path(scope) not in _ROUTES else asking_for_usage(receive.data, body)
        headers = scope["headers"]
        if asking is not None:
            receive = receive.with_body(asking)
            headers = [(name, value) for name, value in headers if name != b"content-length"]
            headers.append((b"content-length", b"%d" % len(asking)))
        if own_id is not None:
            headers = [*headers, (b"x-request-id", own_id.encode())]
        turn = Turn(serving.state, scope, receive, send, asked, serving.served, serving.client, began=began)
        inner = {**scope, "headers": headers}
        passing = pass_through(
            turn, self._app, inner, receive, role=serving.role, said=said, hides_usage=asking is not None
        )
        await _answered(turn, passing, UnderWay(scope, asked.request_id, adapter))


def _closing_first(send: Send, state: Any) -> Send:
    """``send``, which closes what is open before it tells that all is over: the event loop ends then."""

    async def closing(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "lifespan.shutdown.complete" and (opened := getattr(state, "gkt", None)) is not None:
            await opened.stack.aclose()
        await send(message)

    return closing


async def _answered(turn: Turn, work: Awaitable[None], now: UnderWay) -> None:
    """``work``, which answers ``turn``, known and counted while it is under way."""
    metrics = turn.state.metrics
    metrics.request_began(streamed=turn.asked.stream)
    token = under_way.set(now)
    try:
        await work
    finally:
        under_way.reset(token)
        metrics.request_ended(streamed=turn.asked.stream)


def _path(scope: Scope) -> str:
    """Below the path that the server is mounted on, as vLLM's authentication sees it."""
    return str(scope.get("path", "")).removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""


def _read(path: str, body: Mapping[str, Any] | None, adapter: str, scope: Scope, serving: Serving) -> Asked | str:
    """The request, or why it goes to vLLM as it is.

    :raises InvalidRequest: it is wrong about guidance, of which vLLM knows nothing.
    """
    route = _ROUTES.get(path)
    if route is None:
        return "this address is not guided"
    if body is None:
        return "not a JSON object"
    name = body.get("model") or serving.names[0]
    if name not in serving.names and not adapter:
        return "another model"
    if alone := cannot_be_shared(body):
        return ", ".join(alone)
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        return "the answer has begun already"
    if _header(scope, b"content-type").lower().partition(";")[0] != "application/json":
        return _WRONG
    said = _header(scope, GUIDANCE_HEADER.encode())
    try:
        asked = parse(
            route,
            {**(body if serving.preset else with_defaults(route, body)), "model": name},
            headers={GUIDANCE_HEADER: said} if said else None,
            default_sampling=serving.served.sampling,
            request_id=identity_of(path, scope["headers"])[0],
        )
    except InvalidRequest as exc:
        if (exc.param or "").startswith(_ABOUT_GUIDANCE):
            raise
        return _WRONG
    if asked.features:
        return ", ".join(sorted(asked.features))
    return replace(asked, include_usage=asked.stream) if serving.usage_unasked else asked


_ABOUT_GUIDANCE = ("gkt", "guidance_tokens", f"the header {GUIDANCE_HEADER}")
"""What such a refusal names."""
_WRONG = "left to vLLM"
"""Whose own answer to a wrong request is the one that its clients know."""


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


def _marked(send: Send, said: Mapping[str, str], serving: Serving) -> Send:
    """``send``, with headers for the answer, and without the one that vLLM itself gives it."""
    lines = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in said.items()]
    if not lines and not serving.request_id_headers:
        return send

    async def marked(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *lines]
            if serving.request_id_headers:
                headers = [line for line in headers if line[0] != b"x-request-id"]
            message = {**message, "headers": headers}
        await send(message)

    return marked
