"""Spans of a real gateway, as a collector gets them over OTLP, and the headers that real endpoints see."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gkt_plugins.testing.gateway_process import GatewayProcess
from gkt_plugins.testing.openai_upstream import Upstream

TOML = """
[engines.cloud]
adapter = "openai"
base_url = "{teacher}"
model = "large"
[engines.edge]
adapter = "openai"
base_url = "{student}"
model = "small"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = 4
[gateway]
tracing = true
"""
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ASKED = {"model": "gkt/default", "messages": [{"role": "user", "content": "Where?"}]}
TOOLS = ASKED | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}
TEXT = "The cat sat on the mat and slept."


class Collector:
    """Takes spans over OTLP, as HTTP."""

    def __init__(self) -> None:
        self.spans = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def run(folder, body, endpoint: str):
    """One request through a gateway that sends its spans to ``endpoint``: its reply, and what the endpoints got."""
    with Upstream(TEXT, model="large") as teacher, Upstream(TEXT, model="small") as student:
        toml = TOML.format(teacher=teacher.url, student=student.url)
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
        with GatewayProcess(toml, folder, env=env) as gateway:
            sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "baggage": "who=me"}
            reply = gateway.post("/v1/chat/completions", body, headers=sent)
    asked = "Where?"
    received = [one for up in (teacher, student) for one in up.received if asked in str(one.body)]
    return reply, [one.headers for one in received]


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        (ASKED, ["teacher large", "student small"]),
        (ASKED | {"stream": True}, ["teacher large", "student small"]),
        (TOOLS, ["student small"]),
        (TOOLS | {"stream": True}, ["student small"]),
    ],
    ids=["whole", "streamed", "forwarded", "forwarded stream"],
)
def test_client_gateway_teacher_and_student_are_one_trace(tmp_path, body, calls):
    with Collector() as collector:
        reply, headers = run(tmp_path, body, collector.url)
    assert reply.status == 200
    spans = {span.name: span for span in collector.spans}
    request = spans["POST /v1/chat/completions"]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    assert [one["traceparent"] for one in headers] == [f"00-{TRACE}-{spans[name].span_id.hex()}-01" for name in calls]
    assert all(spans[name].parent_span_id == request.span_id for name in calls)
    assert not any("baggage" in one for one in headers)
    assert not any(word in str(collector.spans) for word in ("Where?", "slept"))


def test_a_collector_that_is_away_harms_no_request(tmp_path):
    reply, headers = run(tmp_path, ASKED, "http://127.0.0.1:9")
    assert reply.status == 200
    assert reply.json()["choices"][0]["message"]["content"] == TEXT
    assert len(headers) == 2
