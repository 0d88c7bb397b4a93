"""Greedy speculation writes the target's own tokens: 500 prompts, batch 1, 8 and 32, against plain ``generate``."""

from collections.abc import Sequence

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.contracts import Sampling
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel

PROMPTS = 500
MAX_TOKENS = 64
TIE = 1e-4
"""Logits that differ by less than float32 sums in another order may: either token is then the target's own."""


@pytest.fixture(scope="module")
def models():
    target, draft = (
        AutoModelForCausalLM.from_pretrained(model_dir(name), dtype=torch.float32).eval()
        for name in ("teacher", "draft")
    )
    tokenizer = AutoTokenizer.from_pretrained(model_dir("teacher"))
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for problem in problems(50_000, PROMPTS, split="test")
    ]
    return target, draft, prompts


@pytest.fixture(scope="module")
def plain(models) -> list[list[int]]:
    """Each prompt alone through transformers' own ``generate``."""
    target, _, prompts = models
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = target.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False
            )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_greedy_output_is_plain_generate_s_token_for_token(models, plain, batch: int) -> None:
    target, draft, prompts = models
    served = TransformersModel(target)
    drafter = ModelDrafter(TransformersModel(draft), served.vocab_size)
    loop = DecodeLoop(served, drafter=drafter, gamma=4, max_batch=batch)
    requests = [
        DecodeRequest(prompt, Sampling(max_tokens=MAX_TOKENS), eos_ids=(target.generation_config.eos_token_id,))
        for prompt in prompts
    ]
    results = loop.run(requests)
    assert sum(result.counts.accepted for result in results) > PROMPTS  # it did speculate
    different = [
        (prompt, expected, result.token_ids)
        for prompt, expected, result in zip(prompts, plain, results, strict=True)
        if result.token_ids != expected
    ]
    ties = sum(is_tie(target, *case) for case in different)
    print(f"\nbatch {batch}: {PROMPTS} prompts, {len(different)} differ, {ties} of them ties within {TIE}")
    assert ties == len(different)


def is_tie(target, prompt: Sequence[int], expected: Sequence[int], got: Sequence[int]) -> bool:
    """Whether the first difference is between tokens whose logits are the same up to rounding."""
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
    if at is None:
        return False  # one is the other's beginning: never a tie
    with torch.inference_mode():
        logits = target(torch.tensor([[*prompt, *expected[:at]]])).logits[0, -1]
    return abs(float(logits[expected[at]] - logits[got[at]])) <= TIE
