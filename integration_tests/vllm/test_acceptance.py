"""Sampled acceptance inside vLLM is what our own loop, which is proven against theory, has on the same questions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.contracts import Sampling, Verifier
from gkt_plugins.demo.models import model_dir
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.leniency import exponential, linear, square
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel
from gkt_plugins.speculation.verifiers import ExactVerifier, LenientVerifier
from gkt_vllm.counters import counts_of

GAMMA = 4
MAX_TOKENS = 64
DRAFT = f'[speculation]\ndrafter = "model"\ndraft = "{model_dir("draft")}"\ngamma = {GAMMA}\n'
RULES = {"linear": linear, "square": square, "exponential": exponential}


@pytest.fixture(scope="module")
def ours(chats: list[Any]) -> Any:
    """Counts of our loop for the first questions, each, with a verifier."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir("teacher"))
    load = AutoModelForCausalLM.from_pretrained
    models = [load(model_dir(name), dtype=torch.float32).eval() for name in ("teacher", "draft")]
    prompts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"] for chat in chats
    ]

    def ours(questions: int, verifier: Verifier) -> list[Counts]:
        target, draft = (TransformersModel(model) for model in models)
        loop = DecodeLoop(
            target, drafter=ModelDrafter(draft, target.vocab_size), verifier=verifier, gamma=GAMMA, max_batch=16
        )
        sampling = Sampling(max_tokens=MAX_TOKENS, temperature=1.0)
        # No answer ends early: the two count a block that an end cuts off differently.
        requests = [DecodeRequest(ids, sampling) for ids in prompts[:questions]]
        return [result.counts for result in loop.run(requests)]

    return ours


def sampled(llm: Any, chats: list[Any], counters: Any, **extra: float) -> Counts:
    """What vLLM's counters say of answering ``chats``."""
    from vllm import SamplingParams

    before = counters(llm)
    params = SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS, ignore_eos=True, extra_args=extra or None)
    llm.chat(chats, params, use_tqdm=False)
    after = counters(llm)
    positions = [
        b - a for a, b in zip(before["accepted_tokens_per_pos"], after["accepted_tokens_per_pos"], strict=True)
    ]
    gained = {name: after[name] - before[name] for name in ("drafts", "draft_tokens", "accepted_tokens")}
    return counts_of(gained["drafts"], gained["draft_tokens"], gained["accepted_tokens"], positions)


def assert_agree(engine: Counts, questions: list[Counts]) -> None:
    """Both rates are means over samples of the same process, so that they differ by four standard errors of a
    difference at most; the standard error of a ratio of sums over questions is the linearised one."""
    total = sum(questions, Counts())
    rate = total.acceptance_rate
    assert rate is not None
    assert engine.acceptance_rate is not None
    spread = math.fsum((one.accepted - rate * one.tested) ** 2 for one in questions)
    standard_error = math.sqrt(spread * len(questions) / (len(questions) - 1)) / total.tested
    assert abs(engine.acceptance_rate - rate) <= 4 * math.sqrt(2) * standard_error


@pytest.mark.parametrize("drafts_by", ["vllm", "gkt"])
def test_sampled_acceptance_is_that_of_our_loop_whoever_drafts(drafts_by, open_engine, chats, counters, ours):
    with open_engine(f'{DRAFT}[vllm]\ndrafts_by = "{drafts_by}"') as llm:
        engine = sampled(llm, chats, counters)
    assert_agree(engine, ours(len(chats), ExactVerifier()))


def test_leniency_raises_sampled_acceptance_by_as_much_as_in_our_loop(open_engine, chats, counters, ours):
    for rule, function in RULES.items():
        with open_engine(
            f'{DRAFT}rule = "{rule}"\nverifier = "lenient"\nepsilon = 0.5\n[vllm]\nmax_leniency = 0.3'
        ) as llm:
            rates = []
            for epsilon in (1.0, 0.3):
                engine = sampled(llm, chats[:64], counters, gkt_epsilon=epsilon)
                assert_agree(engine, ours(64, LenientVerifier(function, epsilon)))
                rates.append(engine.acceptance_rate)
        assert rates == sorted(rates), rule
        assert rates[-1] > rates[0], rule
