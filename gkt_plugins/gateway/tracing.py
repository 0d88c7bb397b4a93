"""OpenTelemetry spans that link gateway, teacher and student. Off by default, and then nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import Engine
from gkt_plugins.errors import ConfigError, require

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["OFF", "SILENT", "RequestSpan", "Tracing", "open_tracing"]


class RequestSpan(Protocol):
    """The span of one request, while it is open. Nothing of prompts, answers or keys is ever said in it."""

    def observe(self, record: RequestRecord) -> None:
        """What became of the request. Before the span ends."""
        ...

    def refused(self, code: str) -> None:
        """The request was answered by an error before it belonged to a pipeline."""
        ...


class Tracing(Protocol):
    """Makes spans, or does nothing."""

    def request_span(
        self, route: Literal["chat", "completions"], scope: Mapping[str, Any]
    ) -> AbstractContextManager[RequestSpan]:
        """A span around the whole request, its stream included; it goes on with the trace that the client began.

        ``scope``: of ASGI.
        """
        ...

    def traced(self, engine: Engine, role: Literal["teacher", "student"]) -> Engine:
        """``engine``, with a span around each of its calls. Once, when the pipeline is built."""
        ...

    def close(self) -> None:
        """Send what is not sent yet; may take seconds. Safe to call twice."""
        ...


class _Silent:
    def observe(self, record: RequestRecord) -> None:
        pass

    def refused(self, code: str) -> None:
        pass


SILENT: RequestSpan = _Silent()
"""A span that is none."""


class _Off:
    """No tracing, at no cost."""

    _nothing: AbstractContextManager[RequestSpan] = nullcontext(SILENT)

    def request_span(
        self, route: Literal["chat", "completions"], scope: Mapping[str, Any]
    ) -> AbstractContextManager[RequestSpan]:
        return self._nothing

    def traced(self, engine: Engine, role: Literal["teacher", "student"]) -> Engine:
        return engine

    def close(self) -> None:
        pass


OFF: Tracing = _Off()
"""No spans."""


def open_tracing(enabled: bool, env: Mapping[str, str], *, exporter: SpanExporter | None = None) -> Tracing:
    """``[gateway] tracing``. Where spans go is up to the ``OTEL_…`` variables.

    ``exporter``: where to send spans instead.

    :raises MissingDependencyError: the extra ``tracing`` is not installed.
    :raises ConfigError: ``OTEL_TRACES_EXPORTER`` names what is not there.
    """
    if not enabled:
        return OFF
    require("opentelemetry.sdk.trace", extra="tracing")
    from gkt_plugins.gateway._spans import Spans

    return Spans(exporter or _exporter(env.get("OTEL_TRACES_EXPORTER") or "otlp"))


def _exporter(name: str) -> SpanExporter | None:
    """The exporter called ``name``, as installed packages provide them; None for ``none``."""
    from importlib.metadata import entry_points

    if name == "none":
        return None
    found = {entry.name: entry for entry in entry_points(group="opentelemetry_traces_exporter")}
    entry = found.get({"otlp": "otlp_proto_http"}.get(name, name))
    if entry is None:
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER must name an installed exporter, got {name!r}; known: "
            f"otlp, none, {', '.join(sorted(found))}"
        )
    exporter: SpanExporter = entry.load()()
    return exporter
