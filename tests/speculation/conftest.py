"""Tiny random models of several architectures; float32, on the CPU."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers

VOCAB, CONTEXT = 64, 128

COMMON = {"vocab_size": VOCAB, "initializer_range": 0.3}
LLAMA_LIKE = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
HEADS = {"head_dim": 8}

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA_LIKE),
    "llama-eager": ("LlamaForCausalLM", "LlamaConfig", {**LLAMA_LIKE, "attn_implementation": "eager"}),
    "mistral-sliding": ("MistralForCausalLM", "MistralConfig", {**LLAMA_LIKE, "sliding_window": 8}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA_LIKE),
    "qwen2-mixed-sliding": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**LLAMA_LIKE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**LLAMA_LIKE, **HEADS}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
    ),
    "gpt-neox": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"},
    ),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**LLAMA_LIKE, **HEADS}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**LLAMA_LIKE, **HEADS, "sliding_window": 8}),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**LLAMA_LIKE, **HEADS, "num_hidden_layers": 7, "sliding_window": 8},
    ),
}


@cache
def tiny(name: str, **changes: Any) -> Any:
    """A random model with a fixed seed, without special tokens."""
    model_class, config_class, settings = ARCHITECTURES[name]
    settings = {**settings, **changes}
    attention = settings.pop("attn_implementation", None)
    config = getattr(transformers, config_class)(
        **settings, bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False
    )
    torch.manual_seed(7)
    model = getattr(transformers, model_class)._from_config(
        config, **({"attn_implementation": attention} if attention else {})
    )
    return model.eval()


@cache
def perturbed(name: str, noise: float = 0.02, **changes: Any) -> Any:
    """A draft that often agrees with ``tiny(name)``."""
    model = copy.deepcopy(tiny(name, **changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(name="tiny", scope="session")
def tiny_fixture() -> Callable[..., Any]:
    return tiny


@pytest.fixture(name="perturbed", scope="session")
def perturbed_fixture() -> Callable[..., Any]:
    return perturbed


@pytest.fixture(scope="session")
def architectures() -> list[str]:
    return list(ARCHITECTURES)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Forty prompts of 1 to 30 tokens."""
    rng = random.Random(1)
    return [[rng.randrange(VOCAB) for _ in range(rng.randrange(1, 31))] for _ in range(40)]
