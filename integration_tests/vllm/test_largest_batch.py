"""``vllm.largest_batch``: small batches have drafts, larger ones none, and what is said is the same."""

from __future__ import annotations

import pytest

from gkt_plugins.demo.models import model_dir

CONFIG = f"""
[speculation]
drafter = "model"
draft = "{model_dir("draft")}"
gamma = 4
[vllm]
largest_batch = 4
"""
TOKENS = 40


@pytest.fixture(scope="module")
def asked(open_engine, chats, counters):
    """Answers and drafted tokens of one engine that is asked the same questions in batches of each size."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    found = {}
    with open_engine(CONFIG) as llm:
        for size in (8, 4, 12):
            before = counters(llm).get("draft_tokens", 0)
            batches = [chats[:24][start : start + size] for start in range(0, 24, size)]
            answers = [one for batch in batches for one in llm.chat(batch, params, use_tqdm=False)]
            texts = [list(one.outputs[0].token_ids) for one in answers]
            found[size] = texts, counters(llm).get("draft_tokens", 0) - before
    return found


def test_batches_beyond_the_largest_one_have_no_drafts(asked):
    (_, eight), (_, four), (_, twelve) = asked[8], asked[4], asked[12]
    # A block of 4 drafts gains 5 tokens at most, so that 24 answers take 24 * (40 - 1) / 5 blocks at least.
    assert four >= 4 * 24 * (TOKENS - 1) / 5
    assert eight < four / 10
    assert twelve < four / 10


def test_answers_are_the_same_with_drafts_and_without(asked):
    assert asked[8][0] == asked[4][0] == asked[12][0]


def test_answers_are_the_same_with_vllms_n_grams(asked, open_engine, chats, counters, monkeypatch):
    """In a process of its own: n-grams load numba, beside which vLLM 0.32 opens no second engine (its CPU kernels'
    ``_rebind_kernels`` takes llvmlite's ``lib.__dict__`` for a dictionary)."""
    from vllm import SamplingParams

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    with open_engine('[speculation]\ndrafter = "prompt_lookup"\nmax_ngram = 2\ngamma = 4') as llm:
        answers = llm.chat(
            chats[:24], SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True), use_tqdm=False
        )
        assert counters(llm)["accepted_tokens"] > 0
    assert [list(one.outputs[0].token_ids) for one in answers] == asked[4][0]
