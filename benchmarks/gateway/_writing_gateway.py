"""The gateway, with somebody in the same process and on the same event loop who puts calls into its ledger.

``GET /writing/N`` lets there be N calls per second from then on, and says how many were written since the last time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.gateway.ledger import write_call
from gkt_plugins.config import load_config
from gkt_plugins.gateway.app import build_app
from gkt_plugins.plugins import load_plugins

_BEAT_S = 0.01


class _Writing:
    """Begins a few calls every ten milliseconds."""

    def __init__(self, app: Starlette) -> None:
        self._accounts = app.state.gateway
        self._per_s = 0
        self._written = 0
        self._since = time.perf_counter()
        self._task: asyncio.Task[None] | None = None

    async def set(self, request: Request) -> Response:
        now = time.perf_counter()
        rate = self._written / (now - self._since)
        self._written, self._since = 0, now
        self._per_s = int(request.path_params["per_s"])
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return Response(orjson.dumps({"rows_per_s": rate}))

    async def _run(self) -> None:
        due = time.perf_counter()
        while True:
            due += _BEAT_S
            await asyncio.sleep(due - time.perf_counter())
            async with asyncio.TaskGroup() as group:
                for _ in range(round(self._per_s * _BEAT_S)):
                    group.create_task(self._write())

    async def _write(self) -> None:
        await write_call(self._accounts.opened.accounts)
        self._written += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    plugins = load_plugins()
    app = build_app(load_config(options.config, plugins=plugins), plugins, dict(os.environ))
    app.router.routes.append(Route("/writing/{per_s:int}", _Writing(app).set))
    uvicorn.run(app, port=options.port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
