"""A vLLM server writes what a draft is distilled from; the draft is then worth more to the same target."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.accounting.records import read_records
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems

TRAINER = Path(__file__).parents[2] / ".venv" / "bin" / "python"
"""A draft is trained elsewhere than where vLLM is, in the project's own environment."""
GKT = """
[engines.served]
adapter = "openai"
base_url = "{url}/v1"
model = "large"
body = {{ return_tokens_as_token_ids = true }}
"""
DISTILL = """
output = "{output}"
[models]
target = "{draft}"
draft = "{draft}"
device = "cpu"
[endpoint]
engine = "served"
logprobs = {logprobs}
[data]
prompts = "prompts.jsonl"
held_out = 0.1
policy = "target"
max_new_tokens = 64
[train]
steps = 36
batch_size = 16
learning_rate = 2e-3
optimizer = "adamw"
warmup_steps = 4
[evaluation]
every = 12
temperature = 1.0
gamma = 4
"""


@pytest.fixture(scope="module")
def folder(
    serving: Callable[..., Any], free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Prompts, and a configuration that names a running server of the target."""
    folder = tmp_path_factory.mktemp("distill")
    for name, asked in (("prompts", problems(70_000_000, 160, split="train")), ("test", problems(0, 32, split="test"))):
        lines = [json.dumps({"messages": [{"role": "user", "content": one.question}]}) for one in asked]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    command = [Path(sys.executable).parent / "vllm", "serve", model_dir("teacher"), "--served-model-name", "large"]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16"]
    with serving(folder, {free_port(): [*map(str, command), *options]}) as [url]:
        (folder / "gkt.toml").write_text(GKT.format(url=url))
        yield folder


def gkt(folder: Path, *arguments: str) -> Any:
    """What a command says with ``--json``."""
    done = subprocess.run(
        [TRAINER, "-m", "gkt_plugins.cli", *arguments, "--json"], cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("logprobs", "says"), [(20, "the endpoint told a mass of 0.99"), (0, "learnt from the text of 144 answers alone")]
)
def test_a_draft_that_learns_from_a_server_is_accepted_more_often_by_its_model(folder, logprobs, says):
    output = f"learnt-{logprobs}"
    (folder / "distill.toml").write_text(DISTILL.format(output=output, draft=model_dir("draft"), logprobs=logprobs))
    report = gkt(folder, "distill")
    assert says in report["notes"][0]
    assert not any("text alone" in note for note in report["notes"][1:])
    assert report["after"]["low"] > report["before"]["high"]
    sides = ["--target", str(model_dir("teacher")), "--draft", output, "--against", str(model_dir("draft"))]
    options = ["--prompts", "test.jsonl", "--temperature", "1", "--gamma-max", "4", "--max-tokens", "64"]
    [gained] = gkt(folder, "acceptance", *sides, *options)["comparison"]
    assert gained["acceptance_tv_difference"]["low"] > 0
    assert gained["block_efficiency_ratio"]["4"]["low"] > 1


def test_every_answer_of_the_server_is_on_record(folder):
    records = [record for record in read_records(f"sqlite:///{folder}/gkt.db") if record.pipeline == "distill"]
    assert len(records) == 2 * 160
