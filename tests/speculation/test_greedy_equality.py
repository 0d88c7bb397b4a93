"""Greedy output is plain ``generate``'s, token for token, for every architecture, batch size and drafter.

Where two logits are within 1e-4, the order of additions may decide between them: such a difference counts as a tie,
and a run may have few of them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from gkt_plugins.contracts import Sampling
from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.prompt_lookup import PromptLookupDrafter
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel

NEW = 20
TIE = 1e-4
MODELS = [
    "llama",
    "llama-eager",
    "mistral-sliding",
    "qwen2",
    "qwen2-mixed-sliding",
    "qwen3",
    "gpt2",
    "gpt-neox",
    "gemma",
    "gemma2",
    "gemma3",
]


def by_generate(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    return output[0, len(prompt) :].tolist()


def is_tie(model: Any, prompt: list[int], expected: list[int], got: list[int]) -> bool:
    first = next(i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + expected[:first]])).logits[0, -1]
    return bool((logits[expected[first]] - logits[got[first]]).abs() < TIE)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_output_is_that_of_generate_at_every_batch_size(name, tiny, perturbed, prompts):
    model = tiny(name)
    expected = [by_generate(model, prompt) for prompt in prompts]
    target = TransformersModel(model)
    for batch, gamma in ((1, 4), (8, 3), (32, 5)):
        drafter = ModelDrafter(TransformersModel(perturbed(name)), target.vocab_size)
        loop = DecodeLoop(target, drafter=drafter, gamma=gamma, max_batch=batch)
        results = loop.run([DecodeRequest(prompt, Sampling(max_tokens=NEW)) for prompt in prompts])
        wrong = [i for i, result in enumerate(results) if result.token_ids != expected[i]]
        ties = [i for i in wrong if is_tie(model, prompts[i], expected[i], results[i].token_ids)]
        assert wrong == ties
        assert len(ties) <= 1
        assert sum(result.counts.accepted for result in results) > 0


@pytest.mark.parametrize("gamma", [None, 1, "auto"], ids=["off", "1", "auto"])
def test_greedy_output_does_not_depend_on_how_drafting_is_set(gamma, tiny, prompts):
    model = tiny("llama")
    expected = [by_generate(model, prompt) for prompt in prompts]
    drafter = PromptLookupDrafter() if gamma is not None else None
    loop = DecodeLoop(TransformersModel(model), drafter=drafter, gamma=gamma or 1, max_batch=8)
    results = loop.run([DecodeRequest(prompt, Sampling(max_tokens=NEW)) for prompt in prompts])
    assert [result.token_ids for result in results] == expected


def test_an_architecture_that_cannot_roll_back_is_refused_with_a_sentence():
    from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

    mamba = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(ConfigError, match="MambaForCausalLM keeps a recurrent state that cannot be rolled back"):
        TransformersModel(mamba)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=16, hidden_size=8, n_layer=1, n_head=1))
    with pytest.raises(ConfigError, match="BloomForCausalLM cannot be run with rows of different lengths"):
        TransformersModel(bloom)


def test_an_encoder_decoder_model_is_refused_with_a_sentence():
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ConfigError, match="needs a decoder-only model, got the encoder-decoder T5"):
        TransformersModel(model)


@cache
def _silently_wrong() -> type:
    from transformers import LlamaForCausalLM

    class IgnoresPositions(LlamaForCausalLM):
        def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    return IgnoresPositions


def test_a_model_that_silently_takes_positions_from_elsewhere_is_refused(tiny):
    model = _silently_wrong()(tiny("llama").config)
    model.load_state_dict(tiny("llama").state_dict())
    with pytest.raises(ConfigError, match="computes something else when rows have different lengths"):
        TransformersModel(model)
