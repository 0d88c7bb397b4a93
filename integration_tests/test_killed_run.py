"""``kill -9`` in the middle of ``gkt run`` with real models: nothing finished is lost, nothing is left unmarked."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.accounting.records import read_records
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import Problem, problems

CONFIG = """
[engines.large]
adapter = "transformers"
model = "{teacher}"
max_batch = 4
[engines.small]
adapter = "transformers"
model = "{student}"
max_batch = 4
[pipelines.default]
teacher = "large"
student = "small"
[pipelines.default.guidance]
tokens = 24
"""
ROWS = 48


def run_command(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "gkt_plugins.cli", "run", "--input", str(folder / "questions.jsonl")),
        *("--output", str(folder / "answers.jsonl"), "--config", str(folder / "gkt.toml")),
    ]


def question(problem: Problem) -> dict[str, Any]:
    """A line of the input."""
    messages = [{"role": "user", "content": problem.question}]
    body = {"model": "gkt/default", "messages": messages, "max_tokens": 200, "temperature": 0}
    return {"custom_id": str(problem.seed), "method": "POST", "url": "/v1/chat/completions", "body": body}


def answered(folder: Path) -> list[str]:
    """Ids of whole lines in the answer file."""
    path = folder / "answers.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["custom_id"] for line in lines]


@pytest.mark.parametrize("after", [1, 17])
def test_a_killed_run_loses_no_finished_row_leaves_no_call_open_and_resumes(tmp_path: Path, after: int) -> None:
    config = CONFIG.format(teacher=model_dir("teacher"), student=model_dir("student"))
    (tmp_path / "gkt.toml").write_text(config)
    rows = [question(problem) for problem in problems(0, ROWS, split="test")]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = subprocess.Popen(run_command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 180
    while len(answered(tmp_path)) < after:
        assert run.poll() is None, f"ended early: {run.stderr.read().decode() if run.stderr else ''}"
        assert time.monotonic() < deadline, "no answers"
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = answered(tmp_path)
    assert after <= len(before) < ROWS

    again = subprocess.run(run_command(tmp_path), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    ids = answered(tmp_path)
    assert ids[: len(before)] == before
    assert sorted(ids) == sorted(row["custom_id"] for row in rows)

    records = list(read_records(tmp_path / "gkt.db"))
    assert {record.status for record in records} == {"final", "interrupted"}
    assert all(record.usage.estimated for record in records if record.status == "interrupted")
    finished = {record.request_id for record in records if record.status == "final" and record.role == "student"}
    assert len(finished) >= ROWS
