"""A gateway in this process, whose engines do as they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.accounting.records import read_records, read_requests
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.config import load_config
from gkt_plugins.contracts import BuildContext, Call, Engine, Factory, Options, UsageRecord
from gkt_plugins.gateway.app import build_app
from gkt_plugins.hookspecs import hookimpl
from gkt_plugins.testing.asgi import AsgiClient
from gkt_plugins.testing.engines import Script, ScriptedEngine
from gkt_plugins.testing.plugins import plugins_from

PRICES = """
[prices.cloud-model]
input_per_million = "2.00"
output_per_million = "10.00"
[prices.edge-model]
input_per_million = "0.20"
output_per_million = "1.00"
"""

GUIDED = f"""
[engines.cloud]
adapter = "scripted"
[engines.edge]
adapter = "scripted"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = 3
[retries]
attempts = 1
{PRICES}
"""

Made = Callable[[str], ScriptedEngine]


class Scripted:
    """The adapter ``scripted``: an engine for each name, as ``make`` says."""

    GKT_CONTRACT = 1

    def __init__(self, make: Made) -> None:
        self._make = make
        self.engines: dict[str, ScriptedEngine] = {}

    @hookimpl
    def gkt_engines(self) -> dict[str, Factory[Engine]]:
        def build(options: Options, context: BuildContext) -> Engine:
            assert context.name not in self.engines, "an engine is built once"
            engine = self.engines[context.name] = self._make(context.name)
            return engine

        return {"scripted": Factory(build)}


class Running:
    """A gateway that runs: its client, its engines, and afterwards its ledger."""

    def __init__(self, client: AsgiClient, engines: Mapping[str, ScriptedEngine], folder: Path, close: Any) -> None:
        self.client = client
        self.engines = engines
        self._folder = folder
        self._close = close

    async def chat(self, **more: Any) -> Any:
        """A whole answer to a chat."""
        return await self.client.post("/v1/chat/completions", self.body(**more))

    def body(self, **more: Any) -> dict[str, Any]:
        return {"model": "gkt/default", "messages": [{"role": "user", "content": "Why?"}], **more}

    async def calls(self) -> list[UsageRecord]:
        """Every engine call on record, once the gateway has ended."""
        await self._close()
        return list(read_records(self._folder / "gkt.db"))

    async def requests(self) -> list[RequestRecord]:
        """Every request on record, once the gateway has ended."""
        await self._close()
        return list(read_requests(self._folder / "gkt.db"))


def engine(script: str | Script | Callable[[Call], str | Script], name: str, **more: Any) -> ScriptedEngine:
    return ScriptedEngine(script, name=name, model=f"{name}-model", **more)


def answering(name: str) -> ScriptedEngine:
    """Teacher ``cloud`` and student ``edge`` would say the same, and the student goes on from where it is told to."""
    return engine(lambda call: "So it is, and so it was.".removeprefix(call.prefix), name)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Any]:
    """``await gateway(make, toml)`` starts one; ``make`` gives the engine of each name."""
    stack = AsyncExitStack()

    async def start(make: Made = answering, toml: str = GUIDED, *, headers: Mapping[str, str] | None = None) -> Running:
        (tmp_path / "gkt.toml").write_text(toml)
        adapter = Scripted(make)
        plugins = plugins_from(adapter)
        app = build_app(load_config(tmp_path / "gkt.toml", plugins=plugins, env={}), plugins, {})
        client = await stack.enter_async_context(AsgiClient(app, headers=headers))
        return Running(client, adapter.engines, tmp_path, stack.aclose)

    async with stack:
        yield start
