"""With every hook on and no leniency, greedy output is plain vLLM's own, token for token, under pressure too."""

from __future__ import annotations

from typing import Any

import pytest

from gkt_plugins.demo.models import model_dir

PRESSURE = {
    "max_num_batched_tokens": 64,  # prompts are longer: chunked prefill
    "block_size": 32,
    "num_gpu_blocks_override": 32,  # far less than 16 sequences need: preemption
    "max_model_len": 256,  # some answers run into it
    "enable_prefix_caching": True,
}
DRAFT = f'[speculation]\ndrafter = "model"\ndraft = "{model_dir("draft")}"\n'
DISTILLED = DRAFT.replace(str(model_dir("draft")), str(model_dir("distilled")))
HOOKS = {
    "vLLM's draft model": DRAFT + "gamma = 4",
    "our drafter": DRAFT + 'gamma = 4\n[vllm]\ndrafts_by = "gkt"',
    "our drafter, automatic": DRAFT + 'gamma = "auto"\n[vllm]\ndrafts_by = "gkt"',
    "leniency allowed, none asked": DRAFT + "gamma = 4\n[vllm]\nmax_leniency = 0.1",
    "the distilled draft, leniency of 1": DISTILLED + 'gamma = 4\nverifier = "lenient"\nepsilon = 1.0',
    "a section without drafts": "",
}


def greedy(llm: Any, chats: list[Any]) -> list[list[int]]:
    from vllm import SamplingParams

    answers = llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=160), use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


@pytest.fixture(scope="module")
def plain(chats):
    """What vLLM says without us: no section, no pressure but the length."""
    from vllm import LLM

    llm = LLM(model=str(model_dir("teacher")), dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=16)
    answers = greedy(llm, chats)
    llm.llm_engine.engine_core.shutdown()
    return answers


@pytest.mark.parametrize("hooks", HOOKS)
def test_greedy_output_is_plain_vllms_token_for_token(hooks, open_engine, chats, plain, counters):
    with open_engine(HOOKS[hooks], **PRESSURE) as llm:
        answers = greedy(llm, chats)
        drafted = counters(llm).get("draft_tokens", 0)
        preempted = next(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
    different = [i for i, (got, expected) in enumerate(zip(answers, plain, strict=True)) if got != expected]
    assert different == []
    assert (drafted > 0) == bool(HOOKS[hooks])
    assert preempted > 0
