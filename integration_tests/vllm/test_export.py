"""What ``gkt export --to vllm`` writes is served by the command that it prints, and speculates as our own loop does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gkt_plugins.demo.models import model_dir
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.verifiers import ExactVerifier
from gkt_vllm.counters import counts_of

GAMMA = 4
MAX_TOKENS = 64
QUESTIONS = 64
SAMPLED = 128


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, with the distilled draft."""
    folder = tmp_path_factory.mktemp("export") / "out"
    models = ["--target", str(model_dir("teacher")), "--draft", str(model_dir("distilled")), "--gamma", str(GAMMA)]
    command = [sys.executable, "-m", "gkt_plugins.cli", "export", "--to", "vllm", *models, "--output", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def load(folder: Path) -> str:
    """The command of the folder's own description."""
    return str(json.loads((folder / "gkt-export.json").read_text())["load"])


def counts(values: dict[str, float], positions: Sequence[float]) -> Counts:
    whole = [int(values[name]) for name in ("drafts", "draft_tokens", "accepted_tokens")]
    return counts_of(*whole, [int(value) for value in positions])


def counted(url: str) -> Counts:
    """By vLLM, as its page of metrics says."""
    page = httpx2.get(f"{url}/metrics").text
    values = dict(re.findall(r"^vllm:spec_decode_num_(\w+)_total{[^}]*} (\S+)$", page, re.MULTILINE))
    positions = re.findall(r"_per_pos_total{[^}]*position=\"\d+\"} (\S+)$", page, re.MULTILINE)
    return counts({name: float(value) for name, value in values.items()}, [float(value) for value in positions])


def test_the_command_as_it_is_printed_serves_the_target_s_own_greedy_answers(
    exported, serving, free_port, chats, our_loop, assert_agree
):
    port = free_port()
    # The demo models are float32, which the folder's note is about; the fixture's --port comes last.
    shell = ["bash", "-c", f'exec {load(exported)} "$@"', "vllm", "--dtype", "float32", "--enforce-eager"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with serving(exported, {port: shell}, PATH=path) as [url], httpx2.Client(base_url=url, timeout=120) as http:

        def answer(chat: Any) -> list[int]:
            body = {"model": "target", "messages": chat, "temperature": 0, "max_tokens": MAX_TOKENS}
            reply = http.post("/v1/chat/completions", json=body | {"ignore_eos": True, "return_token_ids": True})
            return list(reply.json()["choices"][0]["token_ids"])

        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(answer, chats[:QUESTIONS]))
        engine = counted(url)
    own = our_loop(QUESTIONS, ExactVerifier(), draft_model="distilled", temperature=0.0, max_tokens=MAX_TOKENS)
    assert answers == [list(result.token_ids) for result in own]
    assert_agree(engine, [result.counts for result in own])


def test_sampled_answers_accept_as_many_of_the_distilled_drafts_as_in_our_loop(
    exported, open_engine, chats, counters, ours, assert_agree
):
    from vllm import SamplingParams

    *_, value = shlex.split(load(exported))
    speculative = json.loads(value)
    speculative["model"] = str(exported / speculative["model"])
    # The section is there for the CPU alone, where vLLM's own sampling of drafts is broken.
    with open_engine("", model=str(exported / "target"), speculative_config=speculative) as llm:
        params = SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS, ignore_eos=True)
        llm.chat(chats[:SAMPLED], params, use_tqdm=False)
        said = counters(llm)
    engine = counts(said, said["accepted_tokens_per_pos"])
    distilled = ours(SAMPLED, ExactVerifier(), draft_model="distilled", max_tokens=MAX_TOKENS)
    assert_agree(engine, distilled)
    undistilled = sum(ours(SAMPLED, ExactVerifier(), max_tokens=MAX_TOKENS), Counts())
    assert engine.acceptance_rate is not None
    assert undistilled.acceptance_rate is not None
    assert engine.acceptance_rate > undistilled.acceptance_rate
