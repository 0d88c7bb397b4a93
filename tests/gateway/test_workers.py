"""Several workers on one port: limits, budgets and metrics are those of the gateway, not of the worker that answers."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gkt_plugins.accounting.records import read_records
from gkt_plugins.testing.gateway_process import GatewayProcess
from gkt_plugins.testing.openai_upstream import Upstream

TOML = """
[engines.edge]
adapter = "openai"
base_url = "{student}"
model = "small"
[prices.small]
input_per_million = "1000000"
output_per_million = "1000000"
[pipelines.default]
student = "edge"
{more}
"""
ASKED = {"model": "gkt/default", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 10}


@pytest.fixture
def upstream():
    with Upstream("So it is.", model="small") as upstream:
        yield upstream


def served(upstream: Upstream, folder, more: str = "") -> GatewayProcess:
    return GatewayProcess(TOML.format(student=upstream.url, more=more), folder, arguments=("--workers", "3"))


def statuses(gateway: GatewayProcess, count: int) -> list[int]:
    """Of ``count`` requests, many at once, each on a connection of its own."""
    with ThreadPoolExecutor(12) as pool:
        return list(pool.map(lambda _: gateway.post("/v1/chat/completions", ASKED).status, range(count)))


def metric(gateway: GatewayProcess, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(gateway.get("/metrics").body.decode())
    found = [s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items()]
    assert len(found) == 1, found
    return found[0]


def until_counted(gateway: GatewayProcess) -> None:
    """Each request is counted after its last byte."""
    while metric(gateway, "gkt_requests_in_flight", mode="whole"):
        time.sleep(0.01)


def workers_of(gateway: GatewayProcess) -> list[int]:
    with open(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children") as children:
        return [int(child) for child in children.read().split()]


def test_whichever_worker_is_asked_the_metrics_are_those_of_all(upstream, tmp_path):
    with served(upstream, tmp_path) as gateway:
        assert statuses(gateway, 30) == [200] * 30
        until_counted(gateway)
        assert {metric(gateway, "gkt_requests_total", status="ok") for _ in range(12)} == {30.0}


def test_a_rate_is_kept_by_all_workers_together(upstream, tmp_path):
    with served(upstream, tmp_path, "[gateway]\nrequests_per_minute = 10") as gateway:
        passed = statuses(gateway, 40).count(200)
    assert 10 <= passed <= 12  # one or two may come back, or be counted at the same instant, while the forty run


def test_a_budget_is_kept_by_all_workers_together(upstream, tmp_path):
    with served(upstream, tmp_path, '[budget]\nper_day = "100"') as gateway:
        statuses(gateway, 40)
    spent = sum(record.cost_nano for record in read_records(tmp_path / "gkt.db"))
    assert 0 < spent <= 100 * 10**9


def test_a_worker_that_dies_is_replaced_and_what_it_counted_still_counts(upstream, tmp_path):
    with served(upstream, tmp_path) as gateway:
        statuses(gateway, 12)
        time.sleep(5.1)  # workers that end sooner are not replaced: they would only end again
        killed = workers_of(gateway)[0]
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while len(set(workers_of(gateway)) - {killed}) < 3:
            assert time.monotonic() < deadline, gateway.log
            time.sleep(0.05)
        assert statuses(gateway, 12) == [200] * 12
        until_counted(gateway)
        assert metric(gateway, "gkt_requests_total", status="ok") == 24
