"""Batches against endpoints over real HTTP: what is forwarded, what is tried again, what is waited for."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.accounting.records import read_records, read_requests
from gkt_plugins.batch.lines import read_line
from gkt_plugins.batch.runner import Runner, samplings
from gkt_plugins.config import load_config
from gkt_plugins.plugins import load_plugins
from gkt_plugins.testing.openai_upstream import Received, Reply, Upstream

TEXT = "So it is, and so it stays."

CONFIG = """
[engines.large]
adapter = "openai"
base_url = "{teacher}"
model = "upstream-model"
prefix = "continue_final_message"
[engines.small]
adapter = "openai"
base_url = "{student}"
model = "upstream-model"
prefix = "continue_final_message"
[prices.upstream-model]
input_per_million = "1.00"
output_per_million = "2.00"
[pipelines.default]
teacher = "large"
student = "small"
guidance.tokens = 3
{more}
"""

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALLED = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]


def source(custom_id: str, **body: Any) -> bytes:
    asked = {"model": "gkt/default", "temperature": 0, "messages": [{"role": "user", "content": custom_id}], **body}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}
    return json.dumps(line).encode()


async def outcomes(folder: Path, teacher: Upstream, student: Upstream, *lines: bytes, more: str = "") -> dict[str, Any]:
    """What becomes of ``lines``, by custom id: the outcome, and its row."""
    text = CONFIG.format(teacher=teacher.url, student=student.url, more=more)
    (folder / "gkt.toml").write_text(text)
    plugins = load_plugins()
    config = load_config(folder / "gkt.toml", plugins=plugins)
    read = [read_line(number, line, samplings(config)) for number, line in enumerate(lines, 1)]
    found = {}
    runner = Runner(config, plugins, {}, ["default"], concurrency=4)
    async with runner, aclosing(runner.run(lambda: read)) as came:
        async for outcome in came:
            assert outcome.custom_id not in found
            found[outcome.custom_id] = (outcome, json.loads(outcome.row)["response"])
    return found


async def test_tools_go_to_the_student_untouched_and_the_answer_says_so(tmp_path):
    with Upstream(TEXT) as teacher, Upstream(Reply("", message={"content": None, "tool_calls": CALLED})) as student:
        found = await outcomes(tmp_path, teacher, student, source("a", tools=[TOOL], user="u1"))
    [received] = student.received
    assert received.body["tools"] == [TOOL]
    assert received.body["model"] == "upstream-model"
    assert not received.body.get("stream")
    assert teacher.received == []
    outcome, response = found["a"]
    body = response["body"]
    assert (response["status_code"], body["model"]) == (200, "gkt/default")
    assert body["choices"][0]["message"]["tool_calls"] == CALLED
    assert body["gkt"]["route"] == "forwarded"
    assert "the request asks for tools" in body["gkt"]["notes"][0]
    assert body["gkt"]["cost"] is not None
    assert not outcome.guided
    [record] = read_records(tmp_path / "gkt.db")
    assert (record.role, record.status, record.usage.estimated) == ("student", "final", False)
    [request] = read_requests(tmp_path / "gkt.db")
    assert (request.route, request.status, request.request_id) == ("forwarded", "ok", record.request_id)


@pytest.mark.parametrize("body", [{}, {"tools": [TOOL]}], ids=["guided", "forwarded"])
async def test_overload_is_tried_again_and_each_attempt_is_on_record(tmp_path, body):
    busy = Reply("", status=429, retry_after_s=0.01)
    with Upstream(TEXT) as teacher, Upstream([busy, busy, TEXT]) as student:
        found = await outcomes(tmp_path, teacher, student, source("a", **body), more="[retries]\nwait_s = 0.001")
    assert found["a"][1]["status_code"] == 200
    students = [record for record in read_records(tmp_path / "gkt.db") if record.role == "student"]
    assert [(record.attempt, record.status) for record in students] == [(0, "failed"), (1, "failed"), (2, "final")]
    assert [record.cost_nano for record in students[:2]] == [0, 0]
    [request] = read_requests(tmp_path / "gkt.db")
    assert request.retries == 2


@pytest.mark.parametrize("body", [{}, {"tools": [TOOL]}], ids=["guided", "forwarded"])
async def test_a_line_whose_engine_stays_down_fails_after_a_second_try_with_the_money_of_both(tmp_path, body):
    with Upstream(TEXT) as teacher, Upstream(Reply("", status=503)) as student:
        retries = "[retries]\nattempts = 1"
        found = await outcomes(tmp_path, teacher, student, source("a", **body), more=retries)
    outcome, response = found["a"]
    assert (response["status_code"], outcome.retryable) == (503, True)
    assert len(student.received) == 2
    records = list(read_records(tmp_path / "gkt.db"))
    assert sorted((r.request_id, r.role) for r in records) == sorted((r.request_id, r.role) for r in outcome.records)
    assert len({record.request_id for record in outcome.records}) == 2


async def test_new_lines_wait_while_a_failing_engine_is_left_alone(tmp_path):
    """Five failures open the breaker; the other lines come when it is over, so each is asked of the teacher once."""
    down = {"left": 6}

    def teacher_script(received: Received) -> Reply | str:
        down["left"] -= 1
        return Reply("", status=503) if down["left"] >= 0 else TEXT

    retries = "[retries]\nattempts = 1\nbreaker_failures = 2\nbreaker_pause_s = 0.05"
    with Upstream(teacher_script) as teacher, Upstream(TEXT) as student:
        names = [f"q{number}" for number in range(60)]
        found = await outcomes(tmp_path, teacher, student, *map(source, names), more=retries)
    assert found.keys() == set(names)
    degraded = [name for name, (outcome, _) in found.items() if outcome.degraded]
    assert len(degraded) <= 16 + 6  # those that were under way, and those that tried it
    assert all(outcome.error == "" for outcome, _ in found.values())


async def test_an_engine_that_is_gone_for_good_does_not_hold_a_batch_up_for_ever(tmp_path):
    retries = "[retries]\nattempts = 1\nbreaker_failures = 1\nbreaker_pause_s = 0.01"
    with Upstream(Reply("", status=503)) as teacher, Upstream(TEXT) as student:
        names = [f"q{number}" for number in range(60)]
        found = await outcomes(tmp_path, teacher, student, *map(source, names), more=retries)
    assert found.keys() == set(names)
    assert all(outcome.degraded and not outcome.error for outcome, _ in found.values())


async def test_one_broken_response_of_an_engine_fails_its_own_line_alone(tmp_path):
    def script(received: Received) -> Reply | str:
        return Reply("", status=400) if received.body["messages"][0]["content"] == "b" else TEXT

    with Upstream(TEXT) as teacher, Upstream(script) as student:
        found = await outcomes(tmp_path, teacher, student, *map(source, "abc"))
    assert {name: response["status_code"] for name, (_, response) in found.items()} == {"a": 200, "b": 400, "c": 200}
    assert {bool(outcome.error) for name, (outcome, _) in found.items() if name != "b"} == {False}


async def test_guidance_that_the_cache_has_is_not_paid_for_again(tmp_path):
    with Upstream(TEXT) as teacher, Upstream(TEXT) as student:
        for custom_id in ("a", "b"):
            line = source(custom_id, messages=[{"role": "user", "content": "Why?"}])
            found = await outcomes(tmp_path, teacher, student, line, more="[cache]")
            outcome, response = found[custom_id]
            assert outcome.cached is response["body"]["gkt"]["cached"] is (custom_id == "b")
    assert len(teacher.received) == 1
    assert len(student.received) == 2


def test_an_interrupted_run_says_how_to_go_on_and_leaves_no_call_open(tmp_path):
    script = lambda received: Reply(TEXT, first_token_s=0.05)  # noqa: E731
    with Upstream(script) as teacher, Upstream(script) as student:
        (tmp_path / "gkt.toml").write_text(CONFIG.format(teacher=teacher.url, student=student.url, more=""))
        (tmp_path / "in.jsonl").write_bytes(b"\n".join(source(f"q{number}") for number in range(4000)))
        command = [sys.executable, "-m", "gkt_plugins.cli", "run", "-i", "in.jsonl", "-o", "out.jsonl"]
        run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        assert student.wait_until(lambda upstream: len(upstream.received) > 40, timeout_s=60)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said == "interrupted; 'out.jsonl' has what was answered, run again to go on\n"
    answers = (tmp_path / "out.jsonl").read_bytes()
    assert answers.endswith(b"\n")
    records = list(read_records(tmp_path / "gkt.db"))
    assert {record.status for record in records} == {"final", "cancelled"}
    paid = sum(record.role == "student" and record.status == "final" for record in records)
    assert 0 <= paid - answers.count(b"\n") <= 16  # what was under way


def test_a_killed_run_goes_on_and_asks_again_for_what_was_under_way_alone(tmp_path):
    script = lambda received: Reply(TEXT, first_token_s=0.02)  # noqa: E731
    with Upstream(script) as teacher, Upstream(script) as student:
        (tmp_path / "gkt.toml").write_text(CONFIG.format(teacher=teacher.url, student=student.url, more=""))
        (tmp_path / "in.jsonl").write_bytes(b"\n".join(source(f"q{number}") for number in range(200)))
        command = [sys.executable, "-m", "gkt_plugins.cli", "run", "-i", "in.jsonl", "-o", "out.jsonl", "--json"]
        for killed_after in (30, 120):
            run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            assert student.wait_until(lambda upstream, n=killed_after: len(upstream.received) > n, timeout_s=60)
            run.kill()
            run.wait()
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answered_before"] > 60
    ids = [json.loads(line)["custom_id"] for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert sorted(ids) == sorted(f"q{number}" for number in range(200))
    for upstream in (teacher, student):
        assert 200 <= len(upstream.received) <= 200 + 2 * 64  # the lines begun at each of the two kills, at most
    statuses = {record.status for record in read_records(tmp_path / "gkt.db")}
    assert statuses == {"final", "interrupted"}


async def test_closing_a_run_in_the_middle_puts_what_was_used_on_record(tmp_path):
    with Upstream(TEXT) as teacher, Upstream(Reply(TEXT, first_token_s=60)) as student:
        text = CONFIG.format(teacher=teacher.url, student=student.url, more="")
        (tmp_path / "gkt.toml").write_text(text)
        plugins = load_plugins()
        config = load_config(tmp_path / "gkt.toml", plugins=plugins)
        lines = [read_line(1, source("a", tools=[TOOL]), samplings(config)), read_line(2, b"x", samplings(config))]
        lines.append(read_line(3, source("c"), samplings(config)))
        runner = Runner(config, plugins, {}, ["default"])
        async with runner, aclosing(runner.run(lambda: lines)) as came:
            assert (await anext(came)).number == 2
            task = asyncio.ensure_future(anext(came))
            await asyncio.to_thread(student.wait_until, lambda upstream: len(upstream.received) == 2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    statuses = sorted((record.role, record.status) for record in read_records(tmp_path / "gkt.db"))
    assert statuses == [("student", "cancelled"), ("student", "cancelled"), ("teacher", "final")]
