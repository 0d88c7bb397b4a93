"""OpenTelemetry spans that link gateway, teacher and student. Off by default, and then nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from gkt_plugins.contracts import Engine

__all__ = ["RequestSpan", "Tracing", "open_tracing"]


class RequestSpan(Protocol):
    """The span of one request, while it is open."""

    def set(self, name: str, value: str | int | float | bool) -> None:
        """Say one more thing about the request. Never any text of prompts or answers."""
        ...

    def failed(self, code: str) -> None:
        """The request was answered by an error."""
        ...


class Tracing(Protocol):
    """Makes spans, or does nothing."""

    def request_span(
        self, route: Literal["chat", "completions"], scope: Mapping[str, Any]
    ) -> AbstractContextManager[RequestSpan]:
        """A span around the whole request, its stream included; it goes on with the trace that the client began."""
        ...

    def traced(self, engine: Engine, role: Literal["teacher", "student"]) -> Engine:
        """``engine``, with a span around each of its calls. Once, when the pipeline is built."""
        ...

    def close(self) -> None:
        """Send what is not sent yet."""
        ...


def open_tracing(enabled: bool, env: Mapping[str, str]) -> Tracing:
    """``[gateway] tracing``. Where spans go is up to the ``OTEL_…`` variables of ``env``.

    :raises MissingDependencyError: the extra ``tracing`` is not installed.
    :raises ConfigError: ``OTEL_TRACES_EXPORTER`` names what is not there.
    """
    raise NotImplementedError
