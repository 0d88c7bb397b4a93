"""``gkt run --engine ray`` on a local cluster of two workers: the outputs and the ledger that one process gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.accounting.records import read_records, read_requests
from gkt_plugins.testing.openai_upstream import Received, Reply, Upstream

LINES = 70

CONFIG = """
[engines.large]
adapter = "openai"
base_url = "{teacher}"
model = "upstream-model"
prefix = "continue_final_message"
api_key_env = "BATCH_TEST_KEY"
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
[retries]
attempts = 1
"""


def answer(received: Received) -> str | Reply:
    """``Answer N is N, and that is all.``; an error for ``bad``."""
    question = next(turn["content"] for turn in received.body["messages"] if turn["role"] == "user")
    if "bad" in question:
        return Reply("", status=400)
    return f"Answer {question} is {question}, and that is all."


def line(number: int, question: str = "") -> dict[str, Any]:
    messages = [{"role": "user", "content": question or str(number)}]
    body = {"model": "gkt/default", "messages": messages, "temperature": 0}
    return {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def gkt_run(folder: Path, output: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "gkt_plugins.cli", "run", "--config", str(folder / "gkt.toml"), "--json"]
    return [*command, "-i", str(folder / "in.jsonl"), "-o", str(folder / output), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "BATCH_TEST_KEY": "key-of-the-test", "OMP_NUM_THREADS": "1"}


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """By custom id, without what is drawn or measured."""
    found = {}
    for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(text)
        response = row["response"]
        for key in ("id", "created"):
            response["body"].pop(key, None)
        del row["id"], response["request_id"]
        found[row["custom_id"]] = row
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bad = [line(1, "bad"), line(5, "twice"), {"custom_id": "none", "method": "POST", "url": "/v1/images", "body": {}}]
    lines = [*(line(number) for number in range(2, LINES)), *bad]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def test_two_ray_workers_give_the_files_the_summary_and_the_ledger_that_one_process_gives(folder: Path) -> None:
    with Upstream(answer, key="key-of-the-test") as teacher, Upstream(answer) as student:
        (folder / "gkt.toml").write_text(CONFIG.format(teacher=teacher.url, student=student.url))
        done = {}
        for output, arguments in {"here.jsonl": (), "ray.jsonl": ("--engine", "ray", "--workers", "2")}.items():
            overrides = ("--set", f"ledger.url=sqlite:///{output}.db")
            command = gkt_run(folder, output, *arguments, *overrides)
            run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
            assert run.returncode == 1, run.stderr
            done[output] = json.loads(run.stdout)
            assert len([line for line in run.stderr.splitlines() if line.startswith("error: ")]) == 3, run.stderr
            assert "Traceback" not in run.stderr
            assert "key-of-the-test" not in run.stderr + run.stdout
    assert rows(folder / "ray.jsonl") == rows(folder / "here.jsonl")
    assert rows(folder / "ray.jsonl").keys() == {f"q{number}" for number in range(2, LINES)}
    assert rows(folder / "ray.errors.jsonl") == rows(folder / "here.errors.jsonl")
    assert rows(folder / "ray.errors.jsonl").keys() == {"q1", "q5", "none"}
    for figure in ("lines", "answered", "failed", "guided", "degraded", "failures"):
        assert done["ray.jsonl"][figure] == done["here.jsonl"][figure]
    told = {}
    for output in done:
        database = folder / f"{output}.db"
        calls = [(r.role, r.status, r.usage.completion_tokens, r.cost_nano) for r in read_records(database)]
        told[output] = (sorted(calls), sorted(r.status for r in read_requests(database)))
    assert told["ray.jsonl"] == told["here.jsonl"]
    assert len(teacher.received) == 2 * (LINES - 1)


def test_a_ray_run_that_is_killed_goes_on_with_what_it_has(folder: Path) -> None:
    def slowly(received: Received) -> str | Reply:
        said = answer(received)
        return said if isinstance(said, Reply) else Reply(said, first_token_s=0.1)

    with Upstream(slowly, key="key-of-the-test") as teacher, Upstream(slowly) as student:
        (folder / "gkt.toml").write_text(CONFIG.format(teacher=teacher.url, student=student.url))
        command = gkt_run(folder, "out.jsonl", "--engine", "ray", "--concurrency", "2")
        run = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert student.wait_until(lambda upstream: len(upstream.received) > LINES // 2, timeout_s=200)
        run.send_signal(signal.SIGKILL)
        run.wait()
        before = rows(folder / "out.jsonl")
        assert 0 < len(before) < LINES - 2
        asked = len(student.received)
        again = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
        assert again.returncode == 1, again.stderr
    assert rows(folder / "out.jsonl").keys() == {f"q{number}" for number in range(2, LINES)}
    assert json.loads(again.stdout)["answered_before"] == len(before)
    answered_again = {str(received.body["messages"][0]["content"]) for received in student.received[asked:]}
    assert not answered_again & {custom_id.removeprefix("q") for custom_id in before}
