"""The spans themselves; loaded only where tracing is on."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeVar

from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gkt_plugins import __version__
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import Call, Capabilities, Completion, Delta, Engine, Forwarder, Usage
from gkt_plugins.errors import EngineError
from gkt_plugins.gateway.tracing import RequestSpan
from gkt_plugins.propagation import trace_headers

__all__ = ["Spans"]

Item = TypeVar("Item")

_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_OPERATIONS = {"chat": "chat", "completions": "text_completion"}
_PROPAGATOR = TraceContextTextMapPropagator()  # no baggage: what clients send must not reach providers


class Spans:
    """Tracing, switched on. Attributes follow OpenTelemetry's conventions where there is one, else begin with gkt."""

    def __init__(self, exporter: SpanExporter | None) -> None:
        """``exporter``: None makes spans that go nowhere, and still hands the client's trace on to the engines."""
        resource = Resource.create({SERVICE_NAME: "gkt-gateway"} | _named_by_environment())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        if exporter is not None:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("gkt_plugins.gateway", __version__)

    def request_span(
        self, route: Literal["chat", "completions"], scope: Mapping[str, Any]
    ) -> AbstractContextManager[RequestSpan]:
        return self._request_span(route, scope)

    @contextmanager
    def _request_span(self, route: Literal["chat", "completions"], scope: Mapping[str, Any]) -> Iterator[RequestSpan]:
        sent = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        parent = _PROPAGATOR.extract(sent, otel_context.Context())
        attributes = {
            "http.request.method": "POST",
            "http.route": _PATHS[route],
            "gen_ai.operation.name": _OPERATIONS[route],
        }
        span = self._tracer.start_span(f"POST {_PATHS[route]}", parent, SpanKind.SERVER, attributes)
        token = otel_context.attach(set_span_in_context(span, parent))
        try:
            yield _RequestSpan(span)
        except BaseException as exc:
            _failed(span, type(exc).__name__)
            raise
        finally:
            otel_context.detach(token)
            span.end()

    def traced(self, engine: Engine, role: Literal["teacher", "student"]) -> Engine:
        kind = _TracedForwarder if isinstance(engine, Forwarder) else _TracedEngine
        return kind(engine, role, self._tracer)

    def close(self) -> None:
        self._provider.shutdown()


class _RequestSpan:
    def __init__(self, span: Span) -> None:
        self._span = span

    def observe(self, record: RequestRecord) -> None:
        told: dict[str, str | int | float | None] = {
            "gkt.request_id": record.request_id,
            "gkt.pipeline": record.pipeline,
            "gkt.client": record.key,
            "gkt.route": record.route,
            "gkt.status": record.status,
            "gkt.streamed": record.streamed,
            "gkt.guidance_tokens": record.guidance_tokens,
            "gkt.degraded": record.degraded,
            "gkt.cached": record.cached,
            "gkt.retries": record.retries,
            "gkt.first_token_s": record.first_token_s,
            "gkt.overhead_s": record.overhead_s,
        }
        self._span.set_attributes({name: value for name, value in told.items() if value is not None})
        if record.error:
            self.refused(record.error)

    def refused(self, code: str) -> None:
        _failed(self._span, code)


class _CallSpan:
    """The span of one engine call: current while the engine works, and named in the headers that it sends."""

    def __init__(self, tracer: Tracer, engine: Engine, role: str, operation: str) -> None:
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": engine.model,
            "gkt.role": role,
            "gkt.engine": engine.name,
        }
        self._span = tracer.start_span(f"{role} {engine.model}", kind=SpanKind.CLIENT, attributes=attributes)
        self._context = set_span_in_context(self._span)
        self._headers: dict[str, str] = {}
        _PROPAGATOR.inject(self._headers, self._context)
        self._text_seen = False

    @contextmanager
    def current(self) -> Iterator[None]:
        """Around each step of a stream, not around all of it: between steps other code of the task runs."""
        context = otel_context.attach(self._context)
        headers = trace_headers.set(self._headers)
        try:
            yield
        finally:
            trace_headers.reset(headers)
            otel_context.detach(context)

    def used(self, usages: Sequence[Usage]) -> None:
        """Token counts, as far as they are known."""
        prompt = [usage.prompt_tokens for usage in usages if usage.prompt_tokens is not None]
        completion = [usage.completion_tokens for usage in usages if usage.completion_tokens is not None]
        if prompt:
            self._span.set_attribute("gen_ai.usage.input_tokens", sum(prompt))
        if completion:
            self._span.set_attribute("gen_ai.usage.output_tokens", sum(completion))

    def ended(self, failure: str = "") -> None:
        if failure:
            _failed(self._span, failure)
        self._span.end()

    def noted(self, item: object) -> None:
        """One step of a stream."""
        if not isinstance(item, Delta):
            return
        if item.text and not self._text_seen:
            self._text_seen = True
            self._span.add_event("first text")
        if item.usage is not None:
            self.used([item.usage])


async def _traced(begin: Callable[[], _CallSpan], items: AsyncIterator[Item]) -> AsyncIterator[Item]:
    """What ``items`` yields; a span from the first step to the end."""
    span = begin()
    failure = ""
    try:
        while True:
            with span.current():
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            span.noted(item)
            yield item
    except (GeneratorExit, CancelledError):
        failure = "cancelled"
        raise
    except Exception as exc:
        failure = type(exc).__name__
        raise
    finally:
        try:
            with span.current():
                if aclose := getattr(items, "aclose", None):
                    await aclose()
        finally:
            span.ended(failure)


class _TracedEngine:
    """An engine, with a span around each call."""

    def __init__(self, engine: Engine, role: Literal["teacher", "student"], tracer: Tracer) -> None:
        self._engine = engine
        self._role = role
        self._tracer = tracer

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def model(self) -> str:
        return self._engine.model

    @property
    def capabilities(self) -> Capabilities:
        return self._engine.capabilities

    async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
        span = self._span(_operation(calls[0]) if calls else _OPERATIONS["chat"])
        failure = "cancelled"
        try:
            with span.current():
                results = await self._engine.generate(calls)
            span.used([result.usage for result in results if isinstance(result, Completion)])
            failed = any(isinstance(result, EngineError) for result in results)
            failure = EngineError.__name__ if failed else ""
            return results
        except Exception as exc:
            failure = type(exc).__name__
            raise
        finally:
            span.ended(failure)

    def stream(self, call: Call) -> AsyncIterator[Delta]:
        return _traced(lambda: self._span(_operation(call)), self._engine.stream(call))

    async def aclose(self) -> None:
        await self._engine.aclose()

    def _span(self, operation: str) -> _CallSpan:
        return _CallSpan(self._tracer, self._engine, self._role, operation)


class _TracedForwarder(_TracedEngine):
    """One that speaks the OpenAI API itself besides."""

    def forward(
        self, route: Literal["chat", "completions"], body: Mapping[str, Any]
    ) -> AsyncIterator[Mapping[str, Any]]:
        assert isinstance(self._engine, Forwarder)
        return _traced(lambda: self._span(_OPERATIONS[route]), self._engine.forward(route, body))


def _operation(call: Call) -> str:
    return _OPERATIONS["chat" if call.prompt.messages else "completions"]


def _failed(span: Span, code: str) -> None:
    """Only a code: messages may repeat what the client sent."""
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)


def _named_by_environment() -> dict[str, str]:
    """The service's name, where ``OTEL_SERVICE_NAME`` or ``OTEL_RESOURCE_ATTRIBUTES`` gives one."""
    name = Resource.create().attributes.get(SERVICE_NAME, "")
    return {} if str(name).startswith("unknown_service") else {SERVICE_NAME: str(name)}
