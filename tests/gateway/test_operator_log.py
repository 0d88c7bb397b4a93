"""What the operator is told when things fail, in the log and by the metrics; never what clients wrote."""

from __future__ import annotations

import logging

import pytest

from gkt_plugins.errors import EngineError
from gkt_plugins.testing.engines import Script, ScriptedEngine

TOML = """
[engines.cloud]
adapter = "scripted"
[engines.edge]
adapter = "scripted"
[pipelines.default]
teacher = "cloud"
student = "edge"
[retries]
attempts = 1
breaker_failures = 2
breaker_pause_s = 600
"""


def failing(*names: str, retryable: bool = True):
    """Engines of which ``names`` never answer."""

    def make(name: str) -> ScriptedEngine:
        error = EngineError(f"the endpoint of engine {name!r} is down", retryable=retryable)
        script = Script("no", fails_after=0, error=error) if name in names else Script("So it is.")
        return ScriptedEngine(script, name=name, model=f"{name}-model")

    return make


async def metrics(running) -> str:
    return (await running.client.get("/metrics")).body.decode()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_request_is_one_line_with_its_id_and_the_reason(gateway, caplog, stream):
    running = await gateway(failing("cloud", "edge", retryable=False), TOML)
    with caplog.at_level(logging.WARNING):
        reply = await running.chat(stream=stream, messages=[{"role": "user", "content": "PRIVATE words"}])
    assert reply.status == 502
    [line] = [record.getMessage() for record in caplog.records if "failed with" in record.getMessage()]
    assert reply.headers["x-request-id"] in line
    assert "is down" in line
    assert "PRIVATE" not in caplog.text


async def test_a_request_that_is_the_client_s_own_fault_is_not_in_the_log(gateway, caplog):
    running = await gateway(failing(), TOML)
    with caplog.at_level(logging.WARNING):
        assert (await running.chat(n=0)).status == 400
        assert (await running.chat(model="gkt/none")).status == 404
    assert caplog.records == []


async def test_an_engine_that_is_left_alone_is_named_with_the_reason_and_shown_as_open(gateway, caplog):
    running = await gateway(failing("cloud"), TOML)
    with caplog.at_level(logging.WARNING):
        assert [(await running.chat()).status for _ in range(3)] == [200] * 3
    lines = [record.getMessage() for record in caplog.records if "left alone" in record.getMessage()]
    assert len(lines) == 1
    assert "'cloud' is left alone for 600 s" in lines[0]
    assert "is down" in lines[0]
    page = await metrics(running)
    assert 'gkt_circuit_open{engine="cloud"} 1.0' in page
    assert 'gkt_circuit_open{engine="edge"} 0.0' in page
    assert 'gkt_degraded_requests_total{pipeline="default"} 3.0' in page
    assert 'gkt_engine_calls_total{engine="cloud",role="teacher",status="failed"} 2.0' in page


async def test_an_address_that_is_not_there_is_counted_and_makes_no_series_of_its_own(gateway):
    running = await gateway(failing(), TOML)
    for number in range(5):
        assert (await running.client.get(f"/probe-{number}")).status == 404
    page = await metrics(running)
    assert 'gkt_errors_total{code="not_found"} 5.0' in page
    assert "probe" not in page
