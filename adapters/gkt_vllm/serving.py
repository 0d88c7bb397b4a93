"""What an API server of vLLM has open for guidance: the pipeline, whose student is the server itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import REGISTRY

from gkt_plugins.config import load_config
from gkt_plugins.gateway.access import Client
from gkt_plugins.gateway.metrics import Metrics
from gkt_plugins.gateway.state import GatewayState, Served
from gkt_plugins.plugins import load_plugins
from gkt_vllm.inner import InnerTransport
from gkt_vllm.pipelines import guided_pipeline
from gkt_vllm.section import GktSection

__all__ = ["SERVER", "Guidance", "ThisServer", "open_guidance"]

SERVER = "vllm_server"
"""Name of the resource that tells an engine of this adapter that it is the server around it."""


@dataclass(frozen=True)
class ThisServer:
    """The student, as its engine has to know it."""

    transport: InnerTransport
    model: str


@dataclass(frozen=True)
class Guidance:
    """One pipeline, ready to answer."""

    state: GatewayState
    served: Served
    names: Sequence[str]
    """Of the model, as vLLM serves it."""
    least: float
    """The smallest leniency that a request may ask for."""
    transport: InnerTransport
    stack: AsyncExitStack
    """Closes what is open."""
    client: Client = field(default_factory=Client)
    """vLLM has authenticated whoever comes here."""


async def open_guidance(section: GktSection, names: Sequence[str]) -> Guidance | None:
    """Open the pipeline of ``section``; None where nothing guides this server.

    :param names: of the model, as vLLM serves it.
    :raises GktError: the ledger or an engine cannot be opened.
    """
    config = load_config(Path(section.config))
    name = guided_pipeline(config, section)
    if name is None:
        return None
    alone = config.model_copy(update={"pipelines": {name: config.pipelines[name]}})
    transport = InnerTransport()
    resources = {SERVER: ThisServer(transport, names[0])}
    # vLLM's /metrics shows the default registry, of all its API servers together.
    state = GatewayState(alone, load_plugins(), os.environ, resources=resources, metrics=Metrics(REGISTRY))
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(state.running())
        leniency = section.workers.leniency if section.workers else None
        least = 1.0 if leniency is None else leniency.least
        return Guidance(state, opened.pipelines[name], names, least, transport, stack.pop_all())
    raise AssertionError("the stack swallows nothing")
