"""The gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gkt_plugins.gateway.routes import routes
from gkt_plugins.gateway.state import GatewayState
from gkt_plugins.openai_wire.errors import ApiError, error_body

if TYPE_CHECKING:
    from gkt_plugins.config import Config
    from gkt_plugins.plugins import Plugins

__all__ = ["build_app"]


def build_app(config: Config, plugins: Plugins, env: Mapping[str, str]) -> Starlette:
    """The application that ``config`` describes. Its lifespan opens engines and ledger, and closes them again.

    :raises ConfigError: there is no pipeline, or the keys cannot be used.
    """
    state = GatewayState(config, plugins, env)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with state.running():
            yield

    app = Starlette(
        routes=routes(state),
        lifespan=lifespan,
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    app.state.gateway = state
    return app


async def _refused(request: Request, exc: Exception) -> Response:
    """Unknown addresses and methods."""
    assert isinstance(exc, HTTPException)
    words = {404: "there is nothing at", 405: "there is no such method at"}
    error = ApiError(
        f"{words.get(exc.status_code, exc.detail)} {request.method} {request.url.path[:200]}; see /openapi.json",
        status=exc.status_code,
        code="not_found" if exc.status_code == 404 else "method_not_allowed",
    )
    request.app.state.gateway.metrics.refused(error.code)
    return _response(error, exc.headers)


async def _failed(request: Request, exc: Exception) -> Response:
    return _response(exc, None)


def _response(error: Exception, headers: Mapping[str, str] | None) -> Response:
    status, body, own = error_body(error)
    return Response(orjson.dumps(body), status, own | dict(headers or {}), media_type="application/json")
