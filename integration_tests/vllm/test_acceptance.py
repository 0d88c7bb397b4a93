"""Sampled acceptance inside vLLM is what our own loop, which is proven against theory, has on the same questions."""

from __future__ import annotations

from typing import Any

import pytest

from gkt_plugins.demo.models import model_dir
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.leniency import exponential, linear, square
from gkt_plugins.speculation.verifiers import ExactVerifier, LenientVerifier
from gkt_vllm.counters import counts_of

GAMMA = 4
MAX_TOKENS = 64
DRAFT = f'[speculation]\ndrafter = "model"\ndraft = "{model_dir("draft")}"\ngamma = {GAMMA}\n'
RULES = {"linear": linear, "square": square, "exponential": exponential}


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


@pytest.mark.parametrize("drafts_by", ["vllm", "gkt"])
def test_sampled_acceptance_is_that_of_our_loop_whoever_drafts(
    drafts_by, open_engine, chats, counters, ours, assert_agree
):
    with open_engine(f'{DRAFT}[vllm]\ndrafts_by = "{drafts_by}"') as llm:
        engine = sampled(llm, chats, counters)
    assert_agree(engine, ours(len(chats), ExactVerifier()))


def test_leniency_raises_sampled_acceptance_by_as_much_as_in_our_loop(open_engine, chats, counters, ours, assert_agree):
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
