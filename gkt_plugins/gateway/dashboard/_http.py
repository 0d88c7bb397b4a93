"""The page, its files and its figures over HTTP.

The files hold no data, so anybody may load them: a page can only ask for a key once it is there. The figures are for
admins. Nothing is loaded from elsewhere, and the content security policy has the browser enforce it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gkt_plugins.errors import GktError
from gkt_plugins.gateway.access import Access
from gkt_plugins.gateway.dashboard.figures import Figures
from gkt_plugins.gateway.dashboard.ranges import parse_range
from gkt_plugins.openai_wire.errors import error_body

if TYPE_CHECKING:
    from gkt_plugins.config import Config
    from gkt_plugins.plugins import Plugins

__all__ = ["DashboardState", "routes"]

_PAGE = "index.html"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-cache",  # kept, and asked for with its tag each time
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class DashboardState(Protocol):
    """What the dashboard needs of the gateway's state."""

    @property
    def config(self) -> Config: ...
    @property
    def plugins(self) -> Plugins: ...
    @property
    def env(self) -> Mapping[str, str]: ...
    @property
    def access(self) -> Access: ...


def routes(state: DashboardState) -> list[Route]:
    """``/dashboard``, ``/dashboard/figures`` and the page's files.

    The ledger is opened for reading when the first figures are asked for.
    """
    found = [Route("/dashboard/figures", _figures_endpoint(state), methods=["GET"])]
    for path, file in _static_files(files(__package__) / "static"):
        found.append(Route("/dashboard" if path == _PAGE else f"/dashboard/{path}", _file_endpoint(path, file)))
    return found


def _open(state: DashboardState) -> Figures:
    from gkt_plugins.accounting.accountant import price_sources
    from gkt_plugins.accounting.records import connect_reader

    config = state.config
    return Figures(
        connect_reader(config.ledger.resolved_url(state.env), config.base_dir),
        price_sources(config, state.plugins, state.env),
        pipelines=list(config.pipelines),
        settled_after_s=config.gateway.request_timeout_s + 60,
    )


def _figures_endpoint(state: DashboardState) -> Callable[[Request], Awaitable[Response]]:
    figures: list[Figures] = []
    one_at_a_time = asyncio.Lock()  # pages that wait hold no thread

    async def endpoint(request: Request) -> Response:
        try:
            state.access.authenticate_admin(request.scope)
            async with one_at_a_time:
                if not figures:
                    figures.append(await asyncio.to_thread(_open, state))
                asked = parse_range(request.query_params, figures[0].now())
                body = await asyncio.to_thread(figures[0].read, asked, request.query_params.get("pipeline") or None)
        except GktError as exc:
            status, error, headers = error_body(exc)
            with suppress(KeyError):
                del headers[
                    "www-authenticate"
                ]  # the page asks for the key itself; a browser's own dialog would keep it
            return _json(error, status, headers)
        return _json(body)

    return endpoint


def _json(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    kept_nowhere = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    return Response(orjson.dumps(body), status, {**(headers or {}), **kept_nowhere}, "application/json")


def _static_files(folder: Traversable, below: str = "") -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found += _static_files(entry, f"{below}{entry.name}/")
        else:
            found.append((below + entry.name, entry.read_bytes()))
    return found


def _file_endpoint(path: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "etag": tag}
    media_type = next(kind for end, kind in _TYPES.items() if path.endswith(end))

    async def endpoint(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return endpoint
