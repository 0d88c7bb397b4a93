"""Answers that the draft writes and the target corrects on the way: speculative knowledge distillation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkt_plugins.distill.rollouts import evaluating
from gkt_plugins.distill.samples import PromptItem, Sample
from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.noise import DRAFT, SAMPLE, uniform
from gkt_plugins.speculation.sampling import sample
from gkt_plugins.speculation.target import TransformersModel

__all__ = ["Interleaved"]

_GAMMA = 8
"""Tokens that the draft writes before the target looks at them. It changes the cost alone."""


class Interleaved:
    """The draft samples each token; where it is not among the target's likeliest, the target samples it instead.

    Between on-policy and target-written answers: a good draft keeps most of its own words, a bad one is kept on track.

    Source: Xu et al. 2024 (speculative knowledge distillation), arXiv:2410.11325.
    """

    def __init__(self, draft_model: Any, target_model: Any, *, eos_ids: Collection[int], max_new_tokens: int,
                 max_batch: int, temperature: float = 1.0, top_k: int = 25) -> None:  # fmt: skip
        """
        :param temperature: of both models; 0 is greedy.
        :param top_k: how many of the target's likeliest tokens the draft may choose from.
        :raises ConfigError: ``top_k`` is less than 1, or a model cannot be decoded with rows of different lengths.
        """
        if top_k < 1:
            raise ConfigError(f"top_k, from which the draft may choose, must be at least 1, got {top_k}")
        self._models = draft_model, target_model
        with evaluating(draft_model), evaluating(target_model):
            self._draft, self._target = TransformersModel(draft_model), TransformersModel(target_model)
        self._vocab_size = min(self._draft.vocab_size, self._target.vocab_size)
        self._eos_ids = frozenset(eos_ids)
        self._max_new_tokens = max_new_tokens
        self._max_batch = max_batch
        self._temperature = temperature
        self._top_k = min(top_k, self._target.vocab_size)

    def samples(self, prompts: Sequence[PromptItem], *, seed: int) -> list[Sample]:
        """See :meth:`gkt_plugins.distill.policies.DataPolicy.samples`."""
        found: list[Sample] = []
        with evaluating(self._models[0]), evaluating(self._models[1]):
            for first in range(0, len(prompts), self._max_batch):
                part = [item.ids for item in prompts[first : first + self._max_batch]]
                rows = np.arange(first, first + len(part), dtype=np.uint64)
                found += [
                    Sample(ids, tuple(answer), "interleaved")
                    for ids, answer in zip(part, self._batch(part, rows, seed), strict=True)
                ]
        return found

    def _batch(self, prompts: Sequence[tuple[int, ...]], numbers: Any, seed: int) -> list[list[int]]:
        """``numbers``: [B] of the rows, for their noise."""
        rows = [list(prompt) for prompt in prompts]
        context = min(self._draft.context, self._target.context)
        limits = [min(len(prompt) + self._max_new_tokens, context) for prompt in prompts]
        for prompt in prompts:
            if not 0 < len(prompt) < context:
                raise ConfigError(
                    f"expected prompts of 1 to {context - 1} tokens, the models' context, got {len(prompt)}"
                )
        padded = _side_by_side(rows, max(map(len, rows)), self._target.device)
        for model in (self._draft, self._target):
            model.forward(self._known(padded, model), [0] * len(rows), last=[0] * len(rows))
        active = list(range(len(rows)))
        while active:
            gamma = min(_GAMMA, max(limits[row] - len(rows[row]) for row in active))
            seeds = np.full(len(active), seed % 2**64, dtype=np.uint64) + numbers[active] * np.uint64(2**32)
            places = np.array([len(rows[row]) for row in active], dtype=np.uint64)
            drafted = self._propose(rows, active, uniform(seeds, places, gamma, DRAFT))
            kept, corrections = self._look(rows, active, drafted, uniform(seeds, places, 1, SAMPLE))
            still = []
            for row, tokens, k, correction in zip(active, drafted.tolist(), kept, corrections, strict=True):
                new = tokens if k == gamma else [*tokens[:k], correction]
                if self._append(rows[row], new, limits[row]):
                    still.append(row)
            active = still
        return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]

    def _propose(self, rows: Sequence[list[int]], active: Sequence[int], noise: Any) -> Tensor:
        """[n, gamma] tokens that the draft writes behind the active rows. ``noise``: [n, gamma]."""
        device = self._draft.device
        draws = torch.from_numpy(noise).to(device)
        # The last two tokens are fed: the cache lacks one of them where the whole block before was kept.
        starts = [max(len(rows[row]) - 2, 0) for row in active]
        ends = [rows[row][start:] for row, start in zip(active, starts, strict=True)]
        ids, last = _side_by_side(ends, 2, device), [len(end) - 1 for end in ends]
        drafted: list[Tensor] = []
        for i in range(draws.shape[1]):
            logits = self._draft.forward(self._known(ids, self._draft), starts, slots=active, last=last)
            drafted.append(self._choose(logits[:, : self._vocab_size], draws[:, i]))
            ids, last = drafted[-1][:, None], [0] * len(active)
            starts = [len(rows[row]) + i for row in active]
        return torch.stack(drafted, dim=1)

    def _look(self, rows: Sequence[list[int]], active: Sequence[int], drafted: Tensor, noise: Any) -> tuple[list[int],
              list[int]]:  # fmt: skip
        """How many tokens of each row the target lets stand, and what it says in the place of the next one."""
        last = torch.tensor([[rows[row][-1]] for row in active], device=drafted.device)
        ids = torch.cat([last, drafted[:, :-1]], dim=1)
        logits = self._target.forward(ids, [len(rows[row]) - 1 for row in active], slots=active)
        least = logits.topk(self._top_k, dim=-1).values[..., -1]
        stands = logits.gather(-1, drafted[..., None]).squeeze(-1) >= least
        kept = stands.long().cumprod(1).sum(1)
        place = kept.clamp(max=drafted.shape[1] - 1)
        there = logits[torch.arange(len(active), device=logits.device), place]
        corrections = self._choose(there[:, : self._vocab_size], torch.from_numpy(noise)[:, 0].to(logits.device))
        return kept.tolist(), corrections.tolist()

    def _choose(self, logits: Tensor, draws: Tensor) -> Tensor:
        if self._temperature == 0:
            return logits.argmax(-1)
        return sample(torch.softmax(logits.float() / self._temperature, dim=-1), draws)

    def _append(self, row: list[int], new: Sequence[int], limit: int) -> bool:
        """Whether the row goes on."""
        for token in new:
            row.append(token)
            if token in self._eos_ids or len(row) >= limit:
                return False
        return True

    def _known(self, ids: Tensor, model: TransformersModel) -> Tensor:
        return ids.clamp(max=model.vocab_size - 1)  # padding of the larger head


def _side_by_side(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> Tensor:
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
