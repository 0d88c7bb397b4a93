"""What ``gkt export`` writes is loaded by the engine as it says, and answers as the target does.

vLLM's folder is tested below ``vllm/``, where vLLM is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems

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
