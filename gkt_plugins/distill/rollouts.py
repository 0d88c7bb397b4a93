"""Answers in bulk, from a model that is being trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from gkt_plugins.contracts import Sampling
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel

__all__ = ["Rollouts"]


class Rollouts:
    """Samples answers from ``model``, whose weights may change between calls."""

    def __init__(self, model: Any, *, eos_ids: Collection[int], max_new_tokens: int, max_batch: int) -> None:
        """
        :param eos_ids: tokens that end an answer; the one that did is its last token.
        :param max_batch: rows that are decoded side by side.
        """
        self._model = model
        self._eos_ids = tuple(eos_ids)
        self._max_new_tokens = max_new_tokens
        self._max_batch = max_batch

    def write(self, prompts: Sequence[Sequence[int]], *, temperature: float,
              seed: int | Sequence[int]) -> list[list[int]]:  # fmt: skip
        """One answer per prompt, in order. The same weights, prompts and seed give the same tokens.

        :param temperature: 0 is greedy.
        :param seed: of the batch, from which each row has its own; or one for each row.
        """
        seeds = [seed * 1_000_003 + row for row in range(len(prompts))] if isinstance(seed, int) else list(seed)
        training = self._model.training
        try:
            with torch.inference_mode():
                loop = DecodeLoop(TransformersModel(self._model), max_batch=self._max_batch)
                results = loop.run(
                    DecodeRequest(prompt, Sampling(max_tokens=self._max_new_tokens, temperature=temperature, seed=own),
                                  eos_ids=self._eos_ids)
                    for prompt, own in zip(prompts, seeds, strict=True)
                )  # fmt: skip
        finally:
            self._model.train(training)
        for result in results:
            if result.error is not None:
                raise result.error
        return [result.token_ids for result in results]
