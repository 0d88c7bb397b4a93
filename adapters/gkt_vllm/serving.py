"""What an API server of vLLM has open: its pipeline, whose student is the server itself, and its ledger."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from gkt_plugins.accounting.prices import FirstKnown
from gkt_plugins.contracts import Role, Sampling
from gkt_plugins.gateway.access import Client
from gkt_plugins.gateway.metrics import Metrics
from gkt_plugins.gateway.state import GatewayState, Served
from gkt_plugins.guidance.attempts import Attempts
from gkt_plugins.guidance.breaker import Breaker
from gkt_plugins.plugins import load_plugins
from gkt_vllm.bounds import Bounds
from gkt_vllm.frozen import FrozenFile
from gkt_vllm.inner import InnerTransport
from gkt_vllm.lora import AdapterPrices
from gkt_vllm.pipelines import own_pipeline
from gkt_vllm.section import GktSection
from gkt_vllm.watching import ConfigWatch

__all__ = ["SERVER", "Serving", "ThisServer", "open_serving"]

SERVER = "vllm_server"
"""Name of the resource that tells an engine of this adapter that it is the server around it."""

_NEVER = 2**31
"""Failures until this server leaves itself alone for a while."""


class _Attempts(Attempts):
    """The ``[retries]`` of a configuration; but who is the server itself cannot leave it alone and call another."""

    def __init__(self, own: str, **section: Any) -> None:
        """``own``: name of the server's own engine. ``section``: keys of ``[retries]``."""
        super().__init__(**section)
        self._breakers[own] = Breaker(_NEVER, 0.0, time.monotonic)


@dataclass(frozen=True)
class ThisServer:
    """The student, as its engine has to know it."""

    transport: InnerTransport
    model: str


@dataclass(frozen=True)
class Serving:
    """One pipeline, ready to answer."""

    state: GatewayState
    served: Served
    role: Role
    """What vLLM is on record as."""
    guides: bool
    preset: bool
    """The pipeline's preset decides what a request does not say; else vLLM does."""
    names: Sequence[str]
    """Of the model, as vLLM serves it."""
    adapters: AdapterPrices
    bounds: Bounds
    transport: InnerTransport
    watch: ConfigWatch
    lenient: Counter
    """Requests that are verified leniently, by rule."""
    max_tokens: int
    """What vLLM writes at most, where a request does not say."""
    usage_unasked: bool
    """vLLM tells usage in every stream, asked or not."""
    request_id_headers: bool
    """vLLM itself answers with ``x-request-id``."""
    stack: AsyncExitStack
    """Closes what is open."""
    client: Client = field(default_factory=Client)
    """vLLM has authenticated whoever comes here."""


async def open_serving(
    section: GktSection,
    file: FrozenFile,
    names: Sequence[str],
    *,
    max_tokens: int,
    usage_unasked: bool = False,
    request_id_headers: bool = False,
    registry: CollectorRegistry = REGISTRY,
) -> Serving:
    """Open the pipeline of ``section``.

    :param names: of the model, as vLLM serves it.
    :param registry: what ``/metrics`` shows; vLLM's page shows the default one, of all its API servers together.
    :raises GktError: the ledger or an engine cannot be opened.
    """
    own = own_pipeline(file.config(), section, names[0])
    transport = InnerTransport()
    resources = {SERVER: ThisServer(transport, names[0])}
    state = GatewayState(own.config, load_plugins(), os.environ, resources=resources, metrics=Metrics(registry))
    lenient, changed = _families(registry)
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(state.running())
        watch = ConfigWatch(file, changed.set)
        await stack.enter_async_context(watch.watched())
        served = opened.pipelines[own.name]
        preset = own.config.pipelines[own.name].guidance.preset is not None
        attempts = _Attempts(served.parts.student.name, **own.config.retries.model_dump())
        adapters = AdapterPrices(opened.prices, served.student)
        opened.accounts.prices = FirstKnown([opened.prices, adapters])
        return Serving(
            state=state,
            served=replace(
                served,
                parts=replace(served.parts, attempts=attempts),
                sampling=served.sampling if preset else Sampling(max_tokens=max_tokens),
            ),
            role=own.role,
            guides=own.guides,
            preset=preset,
            names=names,
            adapters=adapters,
            bounds=Bounds.of(section.workers),
            transport=transport,
            watch=watch,
            lenient=lenient,
            max_tokens=max_tokens,
            usage_unasked=usage_unasked,
            request_id_headers=request_id_headers,
            stack=stack.pop_all(),
        )
    raise AssertionError("the stack swallows nothing")


@cache
def _families(registry: CollectorRegistry) -> tuple[Counter, Gauge]:
    return (
        Counter("gkt_lenient_requests_total", "Requests verified leniently, by rule.", ("rule",), registry=registry),
        Gauge(
            "gkt_config_changed",
            "1 while gkt.toml is not what the server was started with.",
            registry=registry,
            multiprocess_mode="livemax",
        ),
    )
