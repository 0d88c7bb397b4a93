"""The real command, in real processes: two of them together, and one that is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gkt_plugins.demo._tokenizers import render
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def folder(tmp_path) -> Path:
    lines = [
        {"prompt": render(problem.question), "answer": problem.answer} for problem in problems(0, 80, split="train")
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "distill.toml").write_text(
        f"""
output = "out"
[models]
target = "{model_dir("teacher")}"
draft = "{model_dir("draft")}"
device = "cpu"
[data]
prompts = "prompts.jsonl"
max_new_tokens = 16
held_out = 0.1
[train]
steps = 12
batch_size = 4
save_steps = 3
learning_rate = 1e-3
[evaluation]
every = 6
temperature = 1.0
"""
    )
    return tmp_path


def distill(folder: Path, output: str, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """``gkt distill`` in the background."""
    command = [sys.executable, "-m", *launcher, "gkt_plugins.cli", "distill", "--json", "--set", f"output={output}"]
    return subprocess.Popen(
        [*command, *arguments], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def report(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out[out.index("{") :])


def two_processes(how: str = "--multi_gpu") -> tuple[str, ...]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ("accelerate.commands.launch", how, "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port), "-m")  # fmt: skip


@pytest.mark.parametrize("after", [4, 8])
def test_a_run_that_is_killed_continues_with_the_same_losses(folder, after):
    whole = report(distill(folder, "whole"))
    killed = distill(folder, "parts")
    checkpoints = folder / "parts" / "checkpoints"
    while not any(
        path.name.startswith("checkpoint-") and int(path.name[11:]) >= after - 3 for path in found(checkpoints)
    ):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (folder / "parts" / "provenance.json").exists()
    resumed = report(distill(folder, "parts", "--resume"))
    assert resumed["losses"] == whole["losses"]
    assert resumed["acceptance"] == whole["acceptance"]
    assert resumed["tokens"] == whole["tokens"]


def found(checkpoints: Path) -> list[Path]:
    return list(checkpoints.iterdir()) if checkpoints.is_dir() else []


def test_two_processes_train_as_one_on_the_same_answers(folder):
    # fixed answers, all of one epoch in every step: 72 for one process, 36 for each of two
    fixed = ("--set", "data.policy=ground_truth", "--set", "train.steps=4", "--set", "train.save_steps=2",
             "--set", "train.steps_per_rollout=1")  # fmt: skip
    one = report(distill(folder, "one", *fixed, "--set", "train.batch_size=72"))
    two = report(distill(folder, "two", *fixed, "--set", "train.batch_size=36", launcher=two_processes()))
    # the same mean, of float32 sums in another order
    assert [loss for _, loss in two["losses"]] == pytest.approx([loss for _, loss in one["losses"]], abs=1e-4)
    assert two["tokens"] == one["tokens"]
    assert json.loads((folder / "two" / "provenance.json").read_text())["processes"] == 2


def test_two_processes_continue_with_the_same_losses(folder):
    whole = report(distill(folder, "whole", "--set", "train.steps=6", launcher=two_processes()))
    last = folder / "whole" / "checkpoints" / "checkpoint-6"
    (folder / "whole" / "provenance.json").unlink()
    assert {path.name for path in last.glob("distill-*.json")} == {"distill-0.json", "distill-1.json"}
    killed = distill(folder, "parts", "--set", "train.steps=6", launcher=two_processes())
    while not (folder / "parts" / "checkpoints" / "checkpoint-3").is_dir():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGTERM)  # to the launcher, which ends both
    killed.communicate()
    resumed = report(distill(folder, "parts", "--set", "train.steps=6", "--resume", launcher=two_processes()))
    assert resumed["losses"] == whole["losses"]


def test_sharding_the_draft_is_refused_before_anything_is_loaded(folder):
    process = distill(folder, "out", launcher=two_processes("--use_fsdp"))
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "error: a draft cannot be distilled with FSDP, " in err
    assert not (folder / "out" / "options.json").exists()
