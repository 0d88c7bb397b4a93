"""The addresses of the OpenAI API, as bare ASGI applications: one request each, from its bytes to its record."""

from __future__ import annotations

import logging
import time

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gkt_plugins.errors import GktError
from gkt_plugins.gateway import dashboard
from gkt_plugins.gateway.answering import finish
from gkt_plugins.gateway.limits import read_body
from gkt_plugins.gateway.openapi import openapi_document
from gkt_plugins.gateway.state import GatewayState
from gkt_plugins.gateway.turns import Turn, send_error, send_json
from gkt_plugins.openai_wire.errors import InvalidRequest
from gkt_plugins.openai_wire.replies import model_list
from gkt_plugins.openai_wire.requests import GUIDANCE_HEADER, Route, parse, read_model

__all__ = ["AnswerRoute", "routes"]

_log = logging.getLogger(__name__)

_GUIDANCE_HEADER = GUIDANCE_HEADER.encode()


class AnswerRoute:
    """``POST /v1/chat/completions`` and ``POST /v1/completions``."""

    def __init__(self, state: GatewayState, route: Route) -> None:
        self._state = state
        self._route: Route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        state = self._state
        with state.tracing.request_span(self._route, scope) as span:
            try:
                turn = await self._begin(scope, receive, send, began)
            except ClientDisconnect:
                return
            except GktError as exc:
                code = await send_error(send, exc)
                state.metrics.refused(code)
                span.refused(code)
                return
            turn.span = span
            state.metrics.request_began(streamed=turn.asked.stream)
            try:
                await finish(turn)
            finally:
                state.metrics.request_ended(streamed=turn.asked.stream)

    async def _begin(self, scope: Scope, receive: Receive, send: Send, began: float) -> Turn:
        """Everything up to knowing who asks for what."""
        state = self._state
        client = state.access.authenticate(scope)
        state.limits.admit(client)
        body = _decoded(await read_body(scope, receive, max_bytes=state.config.gateway.max_body_bytes))
        served = state.served(read_model(body), client)
        said = next((value for name, value in scope["headers"] if name == _GUIDANCE_HEADER), None)
        headers = None if said is None else {GUIDANCE_HEADER: said.decode("latin-1")}
        asked = parse(self._route, body, headers=headers, default_sampling=served.sampling)
        return Turn(state, scope, receive, send, asked, served, client, began=began)


def _decoded(data: bytes) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(
            f"the request's body must be JSON in UTF-8, and is not: {exc}", code="invalid_json"
        ) from exc


def routes(state: GatewayState) -> list[HttpRoute]:
    """The gateway's own addresses, the busiest first."""

    async def models(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            names = state.models(state.access.authenticate(scope))
        except GktError as exc:
            state.metrics.refused(await send_error(send, exc))
            return
        await send_json(send, 200, model_list(names, created=state.started_at))

    async def model(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            client = state.access.authenticate(scope)
            name = read_model({"model": scope["path_params"]["model"]})
            state.served(name, client)
        except GktError as exc:
            state.metrics.refused(await send_error(send, exc))
            return
        await send_json(send, 200, model_list([name.text], created=state.started_at)["data"][0])

    async def health(request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def ready(request: Request) -> Response:
        status, body = await state.readiness.report()
        return Response(orjson.dumps(body), status, media_type="application/json")

    async def metrics(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            state.access.authenticate_admin(scope)
        except GktError as exc:
            state.metrics.refused(await send_error(send, exc))
            return
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"").decode("latin-1")
        page, content_type = state.metrics.page(accept)
        await Response(page, media_type=content_type)(scope, receive, send)

    async def described(request: Request) -> Response:
        return Response(document, media_type="application/json")

    document = orjson.dumps(openapi_document())
    return [
        HttpRoute("/v1/chat/completions", AnswerRoute(state, "chat"), methods=["POST"]),
        HttpRoute("/v1/completions", AnswerRoute(state, "completions"), methods=["POST"]),
        HttpRoute("/v1/models", _Bare(models), methods=["GET"]),
        HttpRoute("/v1/models/{model:path}", _Bare(model), methods=["GET"]),
        HttpRoute("/health", health, methods=["GET"]),
        HttpRoute("/ready", ready, methods=["GET"]),
        HttpRoute("/metrics", _Bare(metrics), methods=["GET"]),
        HttpRoute("/openapi.json", described, methods=["GET"]),
        *dashboard.routes(state),
    ]


class _Bare:
    """A function as the ASGI application that it is; starlette would take it for a view."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)
