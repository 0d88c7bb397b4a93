"""What ``gkt export`` writes is loaded by the engine as it says, and answers as the target does."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems

ROOT = Path(__file__).parent.parent
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
MAX_TOKENS = 32


def export(to: str, output: Path, *options: str) -> dict[str, Any]:
    """Run the real command on the demo models; return what the folder says of itself."""
    models = ["--target", str(model_dir("teacher")), "--draft", str(model_dir("draft")), "--gamma", "4"]
    command = [sys.executable, "-m", "gkt_plugins.cli", "export", "--to", to, *models, "--output", str(output)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    described = json.loads((output / "gkt-export.json").read_text())
    assert described["stack"] == to
    assert "".join(f"    {line}\n" for line in described["load"].splitlines()) in done.stdout
    return dict(described)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(model_dir("teacher"))
    turns = [[{"role": "user", "content": problem.question}] for problem in problems(0, 4, split="test")]
    return [
        tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"] for turn in turns
    ]


@pytest.fixture(scope="module")
def answers(prompts: list[list[int]]) -> list[list[int]]:
    """The target's own, greedily."""
    model = AutoModelForCausalLM.from_pretrained(model_dir("teacher"), dtype=torch.float32).eval()
    return [generated(model, ids) for ids in prompts]


def generated(model: Any, ids: list[int]) -> list[int]:
    prompt = torch.tensor([ids])
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=MAX_TOKENS, do_sample=False)
    return list(output[0, len(ids) :].tolist())


def test_the_folder_for_transformers_speculates_when_its_own_lines_have_loaded_it(
    tmp_path: Path, prompts: list[list[int]], answers: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    described = export("transformers", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {}
    exec(described["load"], names)
    model = names["model"].float()
    assert [generated(model, ids) for ids in prompts] == answers
    import gkt_transformers

    assert gkt_transformers.last_report(model).counts.accepted > 0


def test_vllm_speculates_with_the_arguments_of_the_folder_s_command(
    tmp_path: Path, prompts: list[list[int]], answers: list[list[int]]
) -> None:
    described = export("vllm", tmp_path / "out")
    program, verb, model, option, value = shlex.split(described["load"])
    assert (program, verb, option) == ("vllm", "serve", "--speculative-config")
    job = {"model": model, "prompts": prompts, "max_tokens": MAX_TOKENS, "speculative_config": json.loads(value)}
    done = subprocess.run(
        [VLLM_PYTHON, ROOT / "integration_tests" / "vllm_generate.py"],
        cwd=tmp_path / "out", input=json.dumps(job), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["token_ids"] == answers
    assert said["drafted"] > 0
    assert 0.3 < said["accepted"] / said["drafted"] <= 1
