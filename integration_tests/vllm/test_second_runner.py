"""vLLM's second model runner: the same greedy tokens, the same acceptance, the same leniency as everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.demo.models import model_dir
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.leniency import linear
from gkt_plugins.speculation.verifiers import ExactVerifier, LenientVerifier
from gkt_vllm.counters import counts_of

QUESTIONS = 32
MAX_TOKENS = 32
JOBS = [{"temperature": t, "max_tokens": MAX_TOKENS, "epsilon": e} for t in (0.0, 1.0) for e in (1.0, 0.2)]
CONFIG = f"""
[speculation]
drafter = "model"
draft = "{model_dir("draft")}"
gamma = 4
rule = "linear"
verifier = "lenient"
epsilon = 1.0
[vllm]
max_leniency = 0.2
"""


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, chats: list[Any]) -> dict[tuple[float, float], Any]:
    """What the second runner made of each job, by temperature and leniency."""
    config = tmp_path_factory.mktemp("second") / "gkt.toml"
    config.write_text(CONFIG)
    job = {"config": str(config), "chats": chats[:QUESTIONS], "jobs": JOBS}
    script = Path(__file__).with_name("second_runner.py")
    run = subprocess.run([sys.executable, script], input=json.dumps(job), capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads(run.stdout.splitlines()[-1])
    return {(one["temperature"], one["epsilon"]): result for one, result in zip(JOBS, results, strict=True)}


def counted(result: Any) -> Counts:
    found = result["counters"]
    return counts_of(found["drafts"], found["draft_tokens"], found["accepted_tokens"], found["per_position"])


def test_greedy_tokens_are_those_of_plain_vllm_on_the_first_runner(answered, open_engine, chats):
    from vllm import SamplingParams

    with open_engine(max_model_len=256) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
        plain = [list(one.outputs[0].token_ids) for one in llm.chat(chats[:QUESTIONS], params, use_tqdm=False)]
    assert answered[0.0, 1.0]["token_ids"] == plain


def test_sampled_acceptance_is_that_of_our_loop(answered, ours, assert_agree):
    assert_agree(counted(answered[1.0, 1.0]), ours(QUESTIONS, ExactVerifier(), max_tokens=MAX_TOKENS))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_leniency_raises_acceptance_by_as_much_as_in_our_loop(answered, ours, assert_agree, temperature):
    lenient = counted(answered[temperature, 0.2])
    expected = ours(QUESTIONS, LenientVerifier(linear, 0.2), temperature=temperature, max_tokens=MAX_TOKENS)
    assert_agree(lenient, expected)
    exact = counted(answered[temperature, 1.0])
    assert lenient.acceptance_rate is not None
    assert exact.acceptance_rate is not None
    assert lenient.acceptance_rate > exact.acceptance_rate
