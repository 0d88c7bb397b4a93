"""What calls to endpoints carry so that the traces of both sides link: W3C ``traceparent`` and ``tracestate``."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

__all__ = ["trace_headers"]

trace_headers: ContextVar[Mapping[str, str]] = ContextVar("trace_headers", default={})  # noqa: B039 - never written to
"""Headers to add to the call that is about to be sent; empty while tracing is off. An adapter reads it where it sends:
``headers = {**headers, **trace_headers.get()}``."""
