"""Runs the gateway: one process with one event loop, or several that share a port."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette

from gkt_plugins.errors import ConfigError
from gkt_plugins.gateway.access import require_keys_beyond_loopback
from gkt_plugins.gateway.app import build_app
from gkt_plugins.gateway.state import GatewayState
from gkt_plugins.gateway.workers import supervise

if TYPE_CHECKING:
    from gkt_plugins.config import Config
    from gkt_plugins.plugins import Plugins

__all__ = ["serve"]

_DRAIN_S = 25
"""How long open requests may still take after SIGTERM; orchestrators commonly kill after 30 s."""
_LAST_WORDS_S = 3.0
"""How long requests that were cut off then may take to put on record what they spent."""
_BACKLOG = 2048
_COLLECT_AFTER = (5000, 5, 80)
"""Objects, then young collections, then middle ones. With 2,000 streams open a full collection takes half a second, in
which no token moves; what requests leave behind needs none, for it has no cycles."""


def serve(
    config: Config,
    plugins: Plugins,
    env: Mapping[str, str],
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int = 1,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; open requests are finished first.

    :param host, port: stand in for those of ``[gateway]``.
    :param workers: processes, at least 1; each has its own engines and its own share of the connections.
    :param ready: called with the base URL when requests are answered; with several workers, when the port is open.
    :raises ConfigError: the configuration cannot be served, or the address cannot be listened on.
    :raises GktError: an engine or the ledger cannot be opened.
    """
    address = config.gateway.host if host is None else host
    app = build_app(config, plugins, env)
    state: GatewayState = app.state.gateway
    require_keys_beyond_loopback(address, state.access)
    listener = _listen(address, config.gateway.port if port is None else port)
    url = _url(listener)
    told = ready or _nothing
    with contextlib.closing(listener):
        if workers == 1:
            _run(app, listener, lambda: told(url))
        else:
            listener.listen(_BACKLOG)  # what comes before the first worker is there waits
            told(url)
            supervise(workers, lambda: _run(app, listener, lambda: None))


def _run(app: Starlette, listener: socket.socket, started: Callable[[], None]) -> None:
    settings = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",  # it is entered below, where its errors are still sentences
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=75,  # longer than load balancers keep theirs
        timeout_graceful_shutdown=_DRAIN_S,
    )
    server = _Server(settings, app.state.gateway, started)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            await server.serve(sockets=[listener])
            if left := list(server.server_state.tasks):
                for task in left if server.force_exit else ():
                    task.cancel()
                await asyncio.wait(left, timeout=_LAST_WORDS_S)

    with asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
        runner.run(run())


class _Server(uvicorn.Server):
    """uvicorn's, which says that it drains, and ends without raising the signal again: the ledger has to be closed."""

    def __init__(self, config: uvicorn.Config, state: GatewayState, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._gateway = state
        self._told = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is here now stays, so that no collection between two tokens has to look at it
        gc.set_threshold(*_COLLECT_AFTER)
        self._told()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._gateway.readiness.draining = True
        super().handle_exit(sig, frame)


def _listen(host: str, port: int) -> socket.socket:
    """:raises ConfigError: the address is taken, or is none of this machine's."""
    try:
        [(family, kind, number, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        raise ConfigError(
            f"the gateway cannot listen on {host} port {port}: {exc.strerror or exc}; choose another with "
            "gateway.host and gateway.port, or --host and --port"
        ) from exc
    listener.setblocking(False)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _nothing(url: str) -> None:
    logging.getLogger(__name__).info("serving at %s", url)
