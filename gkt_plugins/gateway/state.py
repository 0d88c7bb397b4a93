"""What a running gateway has open, shared by all of its requests."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gkt_plugins.accounting.accountant import Accountant
from gkt_plugins.accounting.budgets import Budget, utc_day
from gkt_plugins.contracts import Engine, Forwarder, Preparable, PriceSource, Sampling
from gkt_plugins.errors import ConfigError, EngineError
from gkt_plugins.gateway.access import Access, Client
from gkt_plugins.gateway.asides import beside
from gkt_plugins.gateway.budgeting import Ladder
from gkt_plugins.gateway.health import Readiness
from gkt_plugins.gateway.limits import RateLimits
from gkt_plugins.gateway.metrics import Metrics
from gkt_plugins.gateway.teachers import Teachers
from gkt_plugins.gateway.tracing import OFF, open_tracing
from gkt_plugins.guidance.exchange import Parts
from gkt_plugins.guidance.pipeline import default_sampling, open_pipelines
from gkt_plugins.openai_wire.errors import InvalidRequest
from gkt_plugins.openai_wire.requests import PREFIX, ModelName

if TYPE_CHECKING:
    from gkt_plugins.config import Config
    from gkt_plugins.plugins import Plugins

__all__ = ["GatewayState", "Opened", "Served"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One pipeline, ready to answer."""

    name: str
    parts: Parts
    sampling: Sampling
    """For requests that do not say how."""
    forwarder: Forwarder | None
    """The student, where it speaks the OpenAI API itself."""

    @cached_property
    def fixed(self) -> tuple[str, ...]:
        """Options that a preset fixes for one of the stages, whatever a request says."""
        stages = (self.parts.rules.teacher_sampling, self.parts.rules.student_sampling)
        return tuple(
            key for key in ("temperature", "top_p") if any(getattr(stage, key) is not None for stage in stages)
        )

    @property
    def teacher(self) -> str | None:
        """Its model."""
        return None if self.parts.teacher is None else self.parts.teacher.model

    @property
    def student(self) -> str:
        """Its model."""
        return self.parts.student.model


@dataclass(frozen=True)
class Opened:
    """What has to be closed again."""

    pipelines: Mapping[str, Served]
    accounts: Accountant
    prices: PriceSource
    ladder: Ladder


class GatewayState:
    """Everything that requests share. What needs an event loop is there inside :meth:`running`."""

    def __init__(
        self,
        config: Config,
        plugins: Plugins,
        env: Mapping[str, str],
        *,
        resources: Mapping[str, Any] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """``resources``: what the host lends to engines, see :class:`~gkt_plugins.contracts.BuildContext`.
        ``metrics``: the host's, where it exposes them itself.

        :raises ConfigError: the configuration has no pipeline, or its keys cannot be used.
        """
        if not config.pipelines:
            raise ConfigError("a gateway serves pipelines, and the configuration has none; add [pipelines.default]")
        self.config = config
        self.plugins = plugins
        self.env = env
        self._resources = resources or {}
        self.access = Access.from_config(config)
        self.limits = RateLimits(config.gateway.requests_per_minute, self.access.clients)
        self.metrics = metrics or Metrics()
        self.tracing = OFF
        """Spans, inside :meth:`running`."""
        self.readiness = Readiness({"ledger": self._ledger_is_writable})
        self.teachers = Teachers()
        self.started_at = int(time.time())
        self._opened: Opened | None = None

    @property
    def opened(self) -> Opened:
        """:raises RuntimeError: outside :meth:`running`."""
        if self._opened is None:
            raise RuntimeError("a gateway answers inside its lifespan only; run it with 'gkt serve' or an ASGI server")
        return self._opened

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Opened]:
        """Open engines and ledger, and close them again. Raises what they raise."""
        async with AsyncExitStack() as stack:
            self._opened = await self._open(stack)
            try:
                yield self._opened
            finally:
                self._opened = None

    async def _open(self, stack: AsyncExitStack) -> Opened:
        self.tracing = open_tracing(self.config.gateway.tracing, self.env)
        stack.push_async_callback(asyncio.to_thread, self.tracing.close)
        sections = self.config.pipelines
        opened = await open_pipelines(sections, self.config, self.plugins, self.env, stack, resources=self._resources)
        await stack.enter_async_context(_asking([own.student for own in opened.values() if own.teacher is not None]))
        await stack.enter_async_context(self.teachers.watched([own.teacher for own in opened.values() if own.teacher]))
        parts = {name: self._traced(own) for name, own in opened.items()}
        any_parts = next(iter(parts.values()))  # the pipelines share their ledger and their circuits
        self.metrics.watch_breakers(lambda: any_parts.attempts.circuits)
        accounts = any_parts.accounts
        assert isinstance(accounts, Accountant)
        pipelines = {
            name: Served(name, own, default_sampling(sections[name]), _forwarder(own)) for name, own in parts.items()
        }
        ladder = Ladder.from_config(self.config, accounts, parts.values(), told=self.metrics.budget_step)
        return Opened(pipelines, accounts, accounts.prices, ladder)

    def _traced(self, parts: Parts) -> Parts:
        teacher = None if parts.teacher is None else self.tracing.traced(parts.teacher, "teacher")
        return replace(parts, teacher=teacher, student=self.tracing.traced(parts.student, "student"))

    async def _ledger_is_writable(self) -> None:
        """:raises BackendError: it is not, so no request can be answered."""
        accounts = self.opened.accounts
        name = f"ready-{uuid.uuid4().hex}"
        await accounts.reserve(name, [Budget("ready", 0)], 0, utc_day(time.time()))
        await accounts.settle(name, 0)

    def served(self, model: ModelName, client: Client) -> Served:
        """The pipeline that ``model`` names.

        :raises InvalidRequest: 404, there is none that ``client`` may use.
        """
        name = model.pipeline
        if name is not None and client.may_use(name):
            found = self.opened.pipelines.get(name)
            if found is not None:
                return found
        known = ", ".join(self.models(client)) or "none"
        raise InvalidRequest(
            f"the model {model.text[:100]!r} does not exist here; the models that do: {known}",
            status=404,
            code="model_not_found",
            param="model",
        )

    def models(self, client: Client) -> list[str]:
        """The models that ``client`` may name."""
        return [PREFIX + name for name in self.config.pipelines if client.may_use(name)]


@asynccontextmanager
async def _asking(students: Sequence[Engine]) -> AsyncIterator[None]:
    """Ask endpoints how they continue an answer while nobody waits for it; else the first guided request would."""
    distinct = {id(student): student for student in students}.values()
    async with beside(_prepared(student) for student in distinct if isinstance(student, Preparable)):
        yield


async def _prepared(student: Preparable) -> None:
    try:
        await student.prepare()
    except EngineError as exc:
        _log.warning("a student cannot be asked yet how it continues an answer: %s", exc)


def _forwarder(parts: Parts) -> Forwarder | None:
    return parts.student if isinstance(parts.student, Forwarder) else None
