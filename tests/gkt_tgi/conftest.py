"""A server of text-generation-inference that checks every request and response against the published contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from gkt_plugins.testing.tgi_server import TGIServer

Serve = Callable[..., TGIServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[TGIServer] = []

    def start(script: object = "The cat sat on the mat and slept.", **how: object) -> TGIServer:
        servers.append(TGIServer(script, **how).start())  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
        assert server.violations == []
