"""Clients that leave at any moment and endpoints that fail in any way: afterwards nothing is held, and what the budget
says was spent is what the ledger says."""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor, wait
from urllib.parse import urlsplit

from sqlalchemy import select

from gkt_plugins.accounting.records import connect_reader, read_records, read_requests
from gkt_plugins.accounting.schema import BUDGETS, RESERVATIONS
from gkt_plugins.testing.gateway_process import GatewayProcess
from gkt_plugins.testing.openai_upstream import Fault, Reply, Upstream

TOML = """
[engines.cloud]
adapter = "openai"
base_url = "{teacher}"
model = "large"
[engines.edge]
adapter = "openai"
base_url = "{student}"
model = "small"
prefix = "continue_final_message"
[prices.large]
input_per_million = "2.50"
output_per_million = "10.00"
[prices.small]
input_per_million = "0.20"
output_per_million = "0.80"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = 4
[retries]
attempts = 2
wait_s = 0.005
breaker_failures = 1000
[budget]
per_day = "0.005"
"""
TEXT = "The cat sat on the mat and slept until the sun went down behind the hill."
REQUESTS = 240


def moody(seed: int):
    """An endpoint that is mostly well, and now and then fails in one of many ways."""
    draw = random.Random(seed)

    def reply(asked) -> Reply:
        fault = Fault()
        status = draw.choices([200, 429, 500, 503], [88, 4, 4, 4])[0]
        if draw.random() < 0.12:
            fault = draw.choice([Fault(drop_after=3), Fault(truncate_after=2), Fault(corrupt_after=4), Fault(split=1)])
        pace = draw.choice([0.0, 0.002, 0.008])
        usage = draw.choices(["asked", "never", "every_chunk"], [80, 10, 10])[0]
        return Reply(TEXT, status=status, fault=fault, first_token_s=pace, per_token_s=pace, usage=usage)

    return reply


def ask(gateway: GatewayProcess, seed: int) -> None:
    """One request, given up after a while that is drawn, or read to its end."""
    draw = random.Random(seed)
    route, body = draw.choice(
        [
            ("chat/completions", {"messages": [{"role": "user", "content": "Where?"}]}),
            ("completions", {"prompt": "Where?"}),
            ("completions", {"prompt": ["Where?", "Who?", "When?"]}),
        ]
    )
    more = {"model": "gkt/default", "stream": draw.random() < 0.6, "n": draw.choice([1, 1, 2]), "max_tokens": 40}
    data = json.dumps({**body, **more}).encode()
    address = urlsplit(gateway.url)
    head = f"POST /v1/{route} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-length: {len(data)}\r\n"
    patience_s = draw.choice([0.0, 0.002, 0.01, 0.03, 0.08, 30, 30, 30])
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + b"connection: close\r\n\r\n" + data)
        if patience_s < 1:
            time.sleep(patience_s)
            return
        connection.settimeout(patience_s)
        while connection.recv(65536):
            pass


def test_whatever_happens_nothing_stays_held_and_the_budget_spent_what_the_ledger_says(tmp_path):
    with Upstream(moody(1), model="large") as teacher, Upstream(moody(2), model="small") as student:
        toml = TOML.format(teacher=teacher.url, student=student.url)
        with GatewayProcess(toml, tmp_path) as gateway:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda seed: ask(gateway, seed), range(REQUESTS)))
            deadline = time.monotonic() + 30
            while "open" in (found := {record.status for record in read_records(tmp_path / "gkt.db")}) or held(
                tmp_path
            ):
                assert time.monotonic() < deadline, (found, held(tmp_path), gateway.log)
                time.sleep(0.05)
            spent, reserved = totals(tmp_path)
            assert reserved == 0
            assert "Traceback" not in gateway.log
            assert gateway.get("/ready").status == 200
    records = list(read_records(tmp_path / "gkt.db"))
    assert {record.status for record in records} == {"final", "failed", "cancelled"}
    assert spent == sum(record.cost_nano for record in records)
    assert spent <= 5_000_000  # what 0.005 is in nano-units
    statuses = {record.status for record in read_requests(tmp_path / "gkt.db")}
    assert {"ok", "cancelled", "refused"} <= statuses <= {"ok", "cancelled", "refused", "error"}


def held(folder) -> list[tuple[object, ...]]:
    engine = connect_reader(f"sqlite:///{folder}/gkt.db")
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(select(RESERVATIONS))]
    engine.dispose()
    return rows


def totals(folder) -> tuple[int, int]:
    """Nano-units spent and reserved under the budget of all."""
    engine = connect_reader(f"sqlite:///{folder}/gkt.db")
    with engine.connect() as connection:
        rows = list(connection.execute(select(BUDGETS).where(BUDGETS.c.scope == "all")))
    engine.dispose()
    return sum(row.spent_nano for row in rows), sum(row.reserved_nano for row in rows)


def test_a_gateway_that_is_killed_leaves_nothing_held_to_the_next_and_nothing_forgotten(tmp_path):
    slow = Reply(TEXT, per_token_s=0.05)
    with Upstream(slow, model="large") as teacher, Upstream(slow, model="small") as student:
        toml = TOML.format(teacher=teacher.url, student=student.url)
        with GatewayProcess(toml, tmp_path) as gateway, ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, gateway, seed) for seed in range(8)]
            assert student.wait_until(lambda upstream: len(upstream.received) >= 3)
            assert held(tmp_path)
            gateway.stop(signal.SIGKILL)
            wait(asked)
        with GatewayProcess(toml, tmp_path):
            assert held(tmp_path) == []
            spent, reserved = totals(tmp_path)
    records = list(read_records(tmp_path / "gkt.db"))
    assert reserved == 0
    assert "interrupted" in {record.status for record in records}
    assert spent >= sum(record.cost_nano or 0 for record in records) > 0
