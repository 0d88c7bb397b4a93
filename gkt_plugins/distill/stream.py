"""What each step trains on: prompts in a seeded order, answers from a policy, rows of similar length side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkt_plugins.distill.policies import DataPolicy
from gkt_plugins.distill.samples import PromptItem, Sample, collate

__all__ = ["Part", "SampleStream", "parts_of"]

_CALL_TOKENS = {"cpu": 96}
"""How many tokens of padding one more call of a small model is worth, by device."""
_CALL_TOKENS_ELSEWHERE = 8192


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of similar length, and where their answers are predicted."""

    samples: tuple[Sample, ...]
    ids: Tensor
    """[b, L], padded on the right."""
    picked: Tensor
    """[n] places in the flattened [b * L] whose next token belongs to an answer."""


class SampleStream:
    """Answers for one step after the other; what it gives is a function of the seed and of how often it was asked.

    A round asks the policy for the answers of several steps at once. What is left of a round is part of the state, so
    that an interrupted run goes on with the very same answers.
    """

    def __init__(self, prompts: Sequence[PromptItem], policy: DataPolicy, *, batch_size: int, steps_per_rollout: int,
                 seed: int, process: int = 0, processes: int = 1) -> None:  # fmt: skip
        """``batch_size``: answers per step of this process."""
        self._prompts = prompts
        self._policy = policy
        self._batch_size = batch_size
        self._steps_per_rollout = steps_per_rollout
        self._seed = seed
        self._process, self._processes = process, processes
        self._round = 0
        self._pending: list[list[Sample]] = []
        self._order: tuple[int, np.ndarray[Any, Any]] = (-1, np.empty(0))

    def step(self) -> list[Sample]:
        """The samples of the next step; may be empty where the policy found none."""
        if not self._pending:
            size = self._batch_size * self._steps_per_rollout
            begin = (self._round * self._processes + self._process) * size
            prompts = [self._prompt(place) for place in range(begin, begin + size)]
            seed = int(np.random.SeedSequence([self._seed, self._round, self._process]).generate_state(1)[0])
            samples = self._policy.samples(prompts, seed=seed)
            bounds = [len(samples) * step // self._steps_per_rollout for step in range(self._steps_per_rollout + 1)]
            self._pending = [samples[a:b] for a, b in pairwise(bounds)]
            self._round += 1
        return self._pending.pop(0)

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs, as JSON would have it."""
        return {"round": self._round, "pending": [[astuple(sample) for sample in step] for step in self._pending]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self._round = state["round"]
        self._pending = [
            [Sample(tuple(prompt), tuple(answer), source, key) for prompt, answer, source, key in step]
            for step in state["pending"]
        ]

    def _prompt(self, place: int) -> PromptItem:
        """Every prompt comes once before any comes again, each time in another order."""
        epoch, index = divmod(place, len(self._prompts))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._prompts))
        return self._prompts[int(self._order[1][index])]


def parts_of(samples: Sequence[Sample], pad_id: int, device: torch.device) -> list[Part]:
    """``samples`` in groups that are worked through one after the other: little padding, few calls."""
    ordered = sorted(samples, key=lambda sample: len(sample.prompt) + len(sample.answer))
    lengths = [len(sample.prompt) + len(sample.answer) for sample in ordered]
    parts = []
    for begin, end in _cuts(lengths, _CALL_TOKENS.get(device.type, _CALL_TOKENS_ELSEWHERE)):
        batch = collate(ordered[begin:end], pad_id)
        picked = batch.predicts_answer.flatten().nonzero()[:, 0]
        parts.append(Part(tuple(ordered[begin:end]), batch.ids.to(device), picked.to(device)))
    return parts


def _cuts(lengths: Sequence[int], call_tokens: int) -> list[tuple[int, int]]:
    """The cheapest way to cut sorted ``lengths`` into runs, when a run costs its padded tokens and ``call_tokens``."""
    cost, begins = [0], [0]
    for end in range(1, len(lengths) + 1):
        best, begin = min((cost[b] + (end - b) * lengths[end - 1] + call_tokens, b) for b in range(end))
        cost.append(best)
        begins.append(begin)
    cuts: list[tuple[int, int]] = []
    end = len(lengths)
    while end:
        cuts.append((begins[end], end))
        end = begins[end]
    return cuts[::-1]
