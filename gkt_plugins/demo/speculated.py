"""Second half of the demo: the same greedy answers with and without speculation, and who wrote which token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.contracts import Sampling, TraceEvent
from gkt_plugins.demo.expensive import make_expensive
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import Problem
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.gamma import GammaController
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel

__all__ = ["Comparison", "compare"]

MAX_TOKENS = 256


@dataclass
class Comparison:
    """Plain decoding against speculation, one prompt at a time, target made expensive."""

    parameters: int
    """Of the target."""
    prompts: int = 0
    differing: int = 0
    """Prompts whose tokens were not identical."""
    tokens: int = 0
    plain_seconds: float = 0.0
    speculating_seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)
    pieces: list[tuple[str, bool]] = field(default_factory=list)
    """The first answer, piece by piece: text, and whether the draft proposed it."""

    def as_json(self) -> dict[str, Any]:
        return {
            "target_parameters": self.parameters,
            "prompts": self.prompts,
            "prompts_differing": self.differing,
            "tokens": self.tokens,
            "plain_seconds": round(self.plain_seconds, 2),
            "speculating_seconds": round(self.speculating_seconds, 2),
            "speedup": round(self.plain_seconds / self.speculating_seconds, 3),
            "acceptance_rate": round(self.counts.acceptance_rate or 0.0, 4),
            "block_efficiency": round(self.counts.block_efficiency or 0.0, 3),
        }


def compare(problems: Sequence[Problem], *, on_answer: Callable[[], object]) -> Comparison:
    """Answer every problem twice, in turns. ``on_answer`` is called after each answer."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir("teacher"))
    small: Any = AutoModelForCausalLM.from_pretrained(model_dir("teacher"), dtype=torch.float32)
    large = make_expensive(small)
    target = TransformersModel(large)
    draft = TransformersModel(AutoModelForCausalLM.from_pretrained(model_dir("draft"), dtype=torch.float32))
    gamma = GammaController()
    result = Comparison(large.num_parameters())

    def answer(
        problem: Problem, *, speculate: bool, limit: int = MAX_TOKENS
    ) -> tuple[list[int], float, list[TraceEvent], int]:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        blocks: list[TraceEvent] = []
        drafter = ModelDrafter(draft, target.vocab_size) if speculate else None
        loop = DecodeLoop(target, drafter=drafter, gamma=gamma, max_batch=1, on_block=blocks.append)
        begun = perf_counter()
        [done] = loop.run([DecodeRequest(ids, Sampling(max_tokens=limit), eos_ids=(tokenizer.eos_token_id,))])
        seconds = perf_counter() - begun
        if done.error is not None:
            raise done.error
        if speculate and limit == MAX_TOKENS:
            result.counts += done.counts
        return done.token_ids, seconds, blocks, len(ids)

    for speculate in (False, True):  # the first calls pay for allocations, and gamma = "auto" learns what steps cost
        answer(problems[0], speculate=speculate, limit=64)
    for number, problem in enumerate(problems):
        for speculate in (False, True) if number % 2 else (True, False):
            ids, seconds, blocks, prompt = answer(problem, speculate=speculate)
            on_answer()
            if speculate:
                speculated, traced = ids, blocks
                result.speculating_seconds += seconds
            else:
                plain = ids
                result.plain_seconds += seconds
        result.prompts += 1
        result.tokens += len(plain)
        result.differing += plain != speculated
        if number == 0:
            result.pieces = _pieces(tokenizer, speculated, traced, prompt=prompt)
    return result


def _pieces(tokenizer: Any, ids: Sequence[int], blocks: Sequence[TraceEvent], *, prompt: int) -> list[tuple[str, bool]]:
    """The text of ``ids`` in runs of drafted and of target's own tokens. ``prompt``: tokens before them."""
    drafted = [False] * len(ids)
    for block in blocks:
        first = len(block.token_ids) - prompt
        for index in range(first, min(first + block.accepted, len(ids))):
            drafted[index] = True
    pieces: list[tuple[str, bool]] = []
    shown = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        piece, shown = text[len(shown) :], text
        if pieces and pieces[-1][1] == drafted[end - 1]:
            pieces[-1] = pieces[-1][0] + piece, drafted[end - 1]
        else:
            pieces.append((piece, drafted[end - 1]))
    return pieces
