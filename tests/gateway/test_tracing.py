"""Spans, and the headers that link them with those of the endpoints."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import aclosing

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import Call, Forwarder, Prompt
from gkt_plugins.errors import ConfigError, EngineError
from gkt_plugins.gateway.tracing import OFF, open_tracing
from gkt_plugins.guidance.events import Request, Rules
from gkt_plugins.guidance.exchange import Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import run_request
from gkt_plugins.propagation import trace_headers
from gkt_plugins.testing.engines import Script, ScriptedEngine

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SCOPE = {"headers": [(b"traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode()), (b"baggage", b"secret=1")]}


class Listening(ScriptedEngine):
    """Notes the headers that a call would carry, at each step of its stream."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.carried: list[dict[str, str]] = []

    async def stream(self, call):
        self.carried.append(dict(trace_headers.get()))
        async with aclosing(super().stream(call)) as deltas:
            async for delta in deltas:
                self.carried.append(dict(trace_headers.get()))
                yield delta

    async def generate(self, calls):
        self.carried.append(dict(trace_headers.get()))
        return await super().generate(calls)


class Forwarding(Listening):
    async def forward(self, route, body):
        self.carried.append(dict(trace_headers.get()))
        yield {"object": route, **body}


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans):
    opened = open_tracing(True, {}, exporter=spans)
    yield opened
    opened.close()


def finished(tracing, spans):
    """Every span so far, by name."""
    tracing.close()
    return {span.name: span for span in spans.get_finished_spans()}


async def drive(tracing, teacher, student, scope=SCOPE):
    parts = Parts(
        Rules(length=FixedLength(2), cutting=WordCut()),
        tracing.traced(student, "student"),
        tracing.traced(teacher, "teacher"),
    )
    with tracing.request_span("chat", scope) as span:
        async with aclosing(run_request(Request(Prompt.chat("Why?"), request_id="r1"), parts)) as pieces:
            text = "".join([getattr(piece, "text", "") async for piece in pieces])
        span.observe(RequestRecord("r1", "default", "team", 1.0, "guided", "ok", guidance_tokens=2))
    return text


async def test_gateway_teacher_and_student_are_one_trace_with_the_client_s(tracing, spans):
    teacher = Listening("one two three four", name="cloud", model="large")
    student = Listening(" three", name="edge", model="small")
    await drive(tracing, teacher, student)
    seen = finished(tracing, spans)
    assert set(seen) == {"POST /v1/chat/completions", "teacher large", "student small"}
    request = seen["POST /v1/chat/completions"]
    assert format(request.context.trace_id, "032x") == TRACE
    assert (request.kind, format(request.parent.span_id, "016x")) == (SpanKind.SERVER, "00f067aa0ba902b7")
    for name, engine in (("teacher large", teacher), ("student small", student)):
        span = seen[name]
        assert (span.kind, span.parent.span_id) == (SpanKind.CLIENT, request.context.span_id)
        expected = f"00-{TRACE}-{span.context.span_id:016x}-01"
        assert {headers["traceparent"] for headers in engine.carried} == {expected}


async def test_what_a_span_says_is_counts_and_names_and_never_text(tracing, spans):
    await drive(
        tracing, ScriptedEngine("SECRET answer goes on", model="large"), ScriptedEngine(" SECRET", model="small")
    )
    seen = finished(tracing, spans)
    assert seen["teacher large"].attributes["gen_ai.usage.output_tokens"] == 2
    assert seen["teacher large"].attributes["gkt.role"] == "teacher"
    assert [event.name for event in seen["teacher large"].events] == ["first text"]
    assert seen["POST /v1/chat/completions"].attributes["gkt.guidance_tokens"] == 2
    assert "SECRET" not in "".join(span.to_json() for span in seen.values())
    assert "secret=1" not in "".join(span.to_json() for span in seen.values())


async def test_no_baggage_of_the_client_s_reaches_an_endpoint(tracing, spans):
    student = Listening("yes")
    await drive(tracing, Listening("no"), student)
    assert all(set(headers) <= {"traceparent", "tracestate"} for headers in student.carried)


async def test_headers_are_gone_when_the_call_is_over(tracing):
    student = tracing.traced(Listening("a b c"), "student")
    async with aclosing(student.stream(Call(Prompt(text="x")))) as deltas:
        async for _ in deltas:
            assert trace_headers.get() == {}
    assert trace_headers.get() == {}


async def test_a_failed_call_has_a_failed_span_without_the_message(tracing, spans):
    script = Script("never", fails_after=0, error=EngineError("PRIVATE words of the upstream"))
    engine = tracing.traced(ScriptedEngine(script, model="small"), "student")
    with pytest.raises(EngineError):
        await anext(engine.stream(Call(Prompt(text="x"))))
    span = finished(tracing, spans)["student small"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "EngineError"
    assert "PRIVATE" not in span.to_json()


async def test_a_stream_that_nobody_reads_on_is_a_cancelled_span(tracing, spans):
    inner = ScriptedEngine("a b c d", model="small")
    deltas = tracing.traced(inner, "student").stream(Call(Prompt(text="x")))
    await anext(deltas)
    await deltas.aclose()
    assert inner.cancelled
    assert finished(tracing, spans)["student small"].attributes["error.type"] == "cancelled"


async def test_a_cancelled_task_leaves_a_cancelled_span(tracing, spans):
    inner = ScriptedEngine(Script("a b", hangs_after=1), model="small")
    begun = asyncio.Event()

    async def read():
        async with aclosing(tracing.traced(inner, "student").stream(Call(Prompt(text="x")))) as deltas:
            async for _ in deltas:
                begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished(tracing, spans)["student small"].attributes["error.type"] == "cancelled"


async def test_a_batch_is_one_span_with_the_tokens_of_all(tracing, spans):
    inner = Listening("one two", model="small")
    await tracing.traced(inner, "student").generate([Call(Prompt(text="x")), Call(Prompt(text="y"))])
    span = finished(tracing, spans)["student small"]
    assert span.attributes["gen_ai.usage.output_tokens"] == 4
    assert inner.carried[0]["traceparent"].split("-")[2] == f"{span.context.span_id:016x}"


async def test_an_engine_that_forwards_still_does_and_one_that_does_not_still_does_not(tracing, spans):
    forwarding = tracing.traced(Forwarding("x", model="small"), "student")
    assert isinstance(forwarding, Forwarder)
    assert [chunk async for chunk in forwarding.forward("chat", {"a": 1})] == [{"object": "chat", "a": 1}]
    assert not isinstance(tracing.traced(ScriptedEngine("x"), "student"), Forwarder)
    assert "student small" in finished(tracing, spans)


async def test_closing_a_traced_engine_closes_the_engine(tracing):
    inner = ScriptedEngine("x")
    await tracing.traced(inner, "student").aclose()
    assert inner.closed


@pytest.mark.parametrize("sent", ["", "nonsense", f"00-{TRACE}-zz-01", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "ÿ"])
async def test_a_traceparent_that_is_none_begins_a_new_trace(tracing, spans, sent):
    with tracing.request_span("completions", {"headers": [(b"traceparent", sent.encode("latin-1"))]}) as span:
        span.refused("invalid_request")
    request = finished(tracing, spans)["POST /v1/completions"]
    assert request.parent is None
    assert request.attributes["error.type"] == "invalid_request"


def test_off_there_is_nothing_to_pay():
    engine = ScriptedEngine("x")
    assert open_tracing(False, {}) is OFF
    assert OFF.traced(engine, "teacher") is engine
    with OFF.request_span("chat", SCOPE) as span:
        span.refused("whatever")
    assert trace_headers.get() == {}


def test_an_exporter_that_is_not_installed_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match="got 'zipkin'; known: otlp, none, console"):
        open_tracing(True, {"OTEL_TRACES_EXPORTER": "zipkin"})


def test_spans_may_go_nowhere():
    opened = open_tracing(True, {"OTEL_TRACES_EXPORTER": "none"})
    with opened.request_span("chat", SCOPE):
        pass
    opened.close()
    opened.close()


def test_the_module_that_everybody_imports_loads_no_opentelemetry():
    code = "import sys\nimport gkt_plugins.gateway.tracing as t\nsys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
