"""The models and prompts that all benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM

from gkt_plugins.demo.expensive import EXPENSIVE, make_expensive
from gkt_plugins.demo.models import ModelName, model_dir
from gkt_plugins.demo.problems import Problem, problems

__all__ = ["ForwardClock", "chat_ids", "describe", "draft_model", "expensive_target", "held_out", "tokenizer"]


def tokenizer(name: ModelName) -> Any:
    """The tokenizer of a packaged model, padding on the left as batched ``generate`` needs it."""
    return AutoTokenizer.from_pretrained(model_dir(name), padding_side="left")


def expensive_target() -> Any:
    """The packaged teacher made 100–120 M parameters, float32."""
    small = LlamaForCausalLM.from_pretrained(model_dir("teacher"), dtype=torch.float32)
    return make_expensive(small)


def draft_model() -> Any:
    """The packaged draft, float32."""
    return LlamaForCausalLM.from_pretrained(model_dir("draft"), dtype=torch.float32).train(False)


def held_out(count: int, *, first: int = 0) -> list[Problem]:
    """Problems that no training stream contains; ``first`` is a seed, so that choosing and reporting use others."""
    return list(problems(first, count, split="test"))


def chat_ids(tokens: Any, asked: Sequence[Problem]) -> list[list[int]]:
    """Token ids of each question as a chat that waits for the assistant."""
    return [
        tokens.apply_chat_template(
            [{"role": "user", "content": problem.question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for problem in asked
    ]


def describe(model: nn.Module, target: str) -> dict[str, Any]:
    """What a report says about the expensive model."""
    return {
        "expensive_model": f"the demo {target} widened to hidden {EXPENSIVE.hidden}, MLP {EXPENSIVE.intermediate}, "
        f"{EXPENSIVE.layers} layers; equal logits",
        "expensive_parameters": sum(p.numel() for p in model.parameters()),
    }


@dataclass
class ForwardClock:
    """Seconds inside a model's own forward calls, whoever makes them."""

    seconds: float = 0.0
    calls: int = 0

    @contextmanager
    def on(self, *models: nn.Module) -> Iterator[ForwardClock]:
        """Count while the block runs."""
        begun = [0.0]

        def before(module: nn.Module, args: Any) -> None:
            begun[0] = perf_counter()

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self.seconds += perf_counter() - begun[0]
            self.calls += 1

        handles = [
            handle for m in models for handle in (m.register_forward_pre_hook(before), m.register_forward_hook(after))
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
