"""Second half of the demo: the same greedy answers without a draft, with one, and with the same one distilled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.contracts import Sampling, TraceEvent
from gkt_plugins.demo.expensive import make_expensive
from gkt_plugins.demo.models import ModelName, model_dir
from gkt_plugins.demo.problems import Problem
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.gamma import GammaController
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult
from gkt_plugins.speculation.target import TransformersModel

__all__ = ["DRAFTS", "Comparison", "Speculated", "compare"]

MAX_TOKENS = 320
DRAFTS: tuple[ModelName, ...] = ("draft", "distilled")


@dataclass
class Speculated:
    """What one draft made of the same prompts."""

    seconds: float = 0.0
    differing: int = 0
    """Prompts whose tokens were not those of plain decoding."""
    counts: Counts = field(default_factory=Counts)
    pieces: list[tuple[str, bool]] = field(default_factory=list)
    """The first answer, piece by piece: text, and whether the draft proposed it."""


@dataclass
class Comparison:
    """Plain decoding against speculation with each draft, one prompt at a time, target made expensive."""

    parameters: int
    """Of the target."""
    prompts: int = 0
    tokens: int = 0
    plain_seconds: float = 0.0
    drafts: dict[ModelName, Speculated] = field(default_factory=lambda: {name: Speculated() for name in DRAFTS})

    @property
    def differing(self) -> int:
        """Answers with speculation whose tokens were not those of plain decoding."""
        return sum(draft.differing for draft in self.drafts.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "target_parameters": self.parameters,
            "prompts": self.prompts,
            "answers_differing": self.differing,
            "tokens": self.tokens,
            "plain_seconds": round(self.plain_seconds, 2),
            "drafts": {
                name: {
                    "seconds": round(draft.seconds, 2),
                    "speedup": round(self.plain_seconds / draft.seconds, 3),
                    "acceptance_rate": round(draft.counts.acceptance_rate or 0.0, 4),
                    "block_efficiency": round(draft.counts.block_efficiency or 0.0, 3),
                }
                for name, draft in self.drafts.items()
            },
        }


def compare(problems: Sequence[Problem], *, on_answer: Callable[[], object]) -> Comparison:
    """Answer every problem plainly and with each draft, in turns. ``on_answer`` is called after each answer."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir("teacher"))
    large = make_expensive(_load("teacher"))
    target = TransformersModel(large)
    models = {name: TransformersModel(_load(name)) for name in DRAFTS}
    gammas = {name: GammaController() for name in DRAFTS}
    result = Comparison(large.num_parameters())

    def answer(
        prompt: Sequence[int], draft: ModelName | None, limit: int = MAX_TOKENS
    ) -> tuple[DecodeResult, float, list[TraceEvent]]:
        blocks: list[TraceEvent] = []
        drafter = None if draft is None else ModelDrafter(models[draft], target.vocab_size)
        gamma = 1 if draft is None else gammas[draft]
        loop = DecodeLoop(target, drafter=drafter, gamma=gamma, max_batch=1, on_block=blocks.append)
        begun = perf_counter()
        [done] = loop.run([DecodeRequest(prompt, Sampling(max_tokens=limit), eos_ids=(tokenizer.eos_token_id,))])
        seconds = perf_counter() - begun
        if done.error is not None:
            raise done.error
        return done, seconds, blocks

    ways: list[ModelName | None] = [None, *DRAFTS]
    for number, problem in enumerate(problems):
        chat = [{"role": "user", "content": problem.question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        if number == 0:  # the first calls pay for allocations, and gamma = "auto" learns what steps cost
            for way in ways:
                answer(prompt, way, limit=64)
        answers: dict[ModelName | None, list[int]] = {}
        for way in ways[number % 3 :] + ways[: number % 3]:
            done, seconds, blocks = answer(prompt, way)
            on_answer()
            answers[way] = done.token_ids
            if way is None:
                result.plain_seconds += seconds
                continue
            result.drafts[way].seconds += seconds
            result.drafts[way].counts += done.counts
            if number == 0:
                result.drafts[way].pieces = _pieces(tokenizer, done.token_ids, blocks, prompt=len(prompt))
        result.prompts += 1
        result.tokens += len(answers[None])
        for name, draft in result.drafts.items():
            draft.differing += answers[name] != answers[None]
    return result


def _load(name: ModelName) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir(name), dtype=torch.float32)


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
