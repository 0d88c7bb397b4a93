"""Drafting without a model: what followed the last time these words were said."""

from __future__ import annotations

import torch
from torch import Tensor

from gkt_plugins.contracts import DecodeState, Proposal

__all__ = ["PromptLookupDrafter"]


class PromptLookupDrafter:
    """Looks a row's last n tokens up in the row itself, longest n first, and proposes what followed them there.

    Good where answers quote their prompts: summaries, edits, code. Each token is indexed once.
    """

    def __init__(self, max_ngram: int = 3) -> None:
        """``max_ngram``: longest run of tokens to look up, at least 1."""
        if max_ngram < 1:
            raise ValueError(f"max_ngram must be at least 1, got {max_ngram!r}")
        self._max_ngram = max_ngram
        self._rows: dict[int, _Index] = {}

    def propose(self, state: DecodeState, gamma: int) -> Proposal:
        """See :meth:`gkt_plugins.contracts.Drafter.propose`."""
        self._rows = {row: self._rows.get(row) or _Index(self._max_ngram) for row in state.rows}
        found = []
        for b, (row, length) in enumerate(zip(state.rows, state.lengths, strict=True)):
            index = self._rows[row]
            index.extend(state.token_ids[b, len(index.tokens) : length].tolist())
            found.append(index.continuation(gamma))
        width = max(map(len, found))
        device = state.token_ids.device
        padded = [ids + [0] * (width - len(ids)) for ids in found]
        return Proposal(
            ids=torch.tensor(padded, dtype=torch.int64, device=device).reshape(len(found), width),
            probs=None,
            counts=torch.tensor([len(ids) for ids in found], device=device),
        )

    def commit(self, kept: Tensor) -> None:
        """Nothing to roll back: only tokens of the answer are indexed."""


class _Index:
    """Where each run of tokens of one row was last followed by something."""

    def __init__(self, max_ngram: int) -> None:
        self.tokens: list[int] = []
        self._max_ngram = max_ngram
        self._next: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            end = len(self.tokens)
            for n in range(1, min(self._max_ngram, end) + 1):
                self._next[tuple(self.tokens[end - n :])] = end
            self.tokens.append(token)

    def continuation(self, gamma: int) -> list[int]:
        for n in range(min(self._max_ngram, len(self.tokens)), 0, -1):
            start = self._next.get(tuple(self.tokens[-n:]))
            if start is not None:
                return self.tokens[start : start + gamma]
        return []
