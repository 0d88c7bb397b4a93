"""Tiny models whose probabilities are known exactly, for tests of loops, drafters and verifiers.

They satisfy the decode loop's target interface and the drafter protocol alike, so that any of them can draft for any
other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gkt_plugins.contracts import DecodeState, Proposal, Sampling

__all__ = ["TableModel", "sequence_probs", "truncated"]


class TableModel:
    """The next token depends on the last one alone, by a table. Target and drafter at once."""

    def __init__(self, probs: Sequence[Sequence[float]] | Tensor, *, context: int = 4096) -> None:
        """``probs``: [vocab, vocab]; row i is the distribution that follows token i, and adds up to 1."""
        self.probs = torch.as_tensor(probs, dtype=torch.float64)
        self.vocab_size = len(self.probs)
        if self.probs.shape != (self.vocab_size, self.vocab_size):
            raise ValueError(f"expected a square table, got {list(self.probs.shape)}")
        self.context = context
        self.device = torch.device("cpu")
        self.seconds = 0.0
        self.calls: list[tuple[int, int]] = []
        """Rows and tokens per row of each forward call so far."""
        self._cached: dict[int, int] = {}

    @classmethod
    def greedy(cls, successors: Sequence[int], *, context: int = 4096) -> TableModel:
        """Token i is always followed by ``successors[i]``."""
        return cls(torch.nn.functional.one_hot(torch.tensor(successors), len(successors)), context=context)

    @classmethod
    def random(cls, vocab_size: int, seed: int, *, sharpness: float = 1.0) -> TableModel:
        """Distributions drawn from ``seed``; a larger ``sharpness`` makes them less even."""
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.float64)
        return cls(torch.softmax(sharpness * logits, dim=-1))

    def continue_greedily(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The ``num_tokens`` tokens that greedy decoding gives after ``prompt``."""
        token, answer = prompt[-1], []
        for _ in range(num_tokens):
            token = int(self.probs[token].argmax())
            answer.append(token)
        return answer

    def forward(self, ids: Tensor, starts: Sequence[int], *, slots: Sequence[int] | None = None,
                last: Sequence[int] | None = None) -> Tensor:  # fmt: skip
        """As the decode loop's target. Asserts that no row is asked for tokens behind a hole in its cache."""
        self.calls.append((ids.shape[0], ids.shape[1]))
        for slot, start in zip(range(len(ids)) if slots is None else slots, starts, strict=True):
            assert start <= self._cached.get(slot, 0), "a row's cache must not have holes"
            self._cached[slot] = start + ids.shape[1]
        logits = torch.log(self.probs).float()[ids]
        return logits if last is None else logits[torch.arange(len(ids)), torch.tensor(last)]

    def move(self, source: int, destination: int, length: int) -> None:
        """As the decode loop's target."""
        assert length <= self._cached[source]
        self._cached[destination] = length

    def propose(self, state: DecodeState, gamma: int) -> Proposal:
        """As a drafter."""
        token = state.token_ids.gather(1, torch.tensor(state.lengths)[:, None] - 1)
        drafted, probs = token[:, :0], []
        for _ in range(gamma):
            probs.append(state.draft_probs(torch.log(self.probs).float()[token[:, 0]], drafted))
            token = state.sample(probs[-1])[:, None]
            drafted = torch.cat([drafted, token], dim=1)
        return Proposal(drafted, torch.stack(probs, dim=1))

    def commit(self, kept: Tensor) -> None:
        """As a drafter; there is nothing to roll back."""

    def next_probs(self, sequences: Tensor) -> Tensor:
        """[n, vocab] distributions that follow ``sequences`` [n, length]."""
        return self.probs[sequences[:, -1]]


def sequence_probs(next_probs: Callable[[Tensor], Tensor], prompt: Sequence[int], length: int,
                   sampling: Sampling) -> Tensor:  # fmt: skip
    """[vocab ** length] exact probability of every continuation of ``prompt``, by enumeration, in float64.

    ``next_probs``: [n, length] ids → [n, vocab] the model's own distributions. Continuations are numbered like digits:
    the last token counts by ones.
    """
    sequences = torch.tensor([list(prompt)])
    total = torch.ones(1, dtype=torch.float64)
    for _ in range(length):
        step = torch.stack([truncated(row, sampling) for row in next_probs(sequences).double()])
        vocab = step.shape[1]
        total = (total[:, None] * step).flatten()
        sequences = torch.cat(
            [sequences.repeat_interleave(vocab, 0), torch.arange(vocab).repeat(len(sequences))[:, None]], 1
        )
    return total


def truncated(probs: Tensor, sampling: Sampling) -> Tensor:
    """[vocab] one distribution after temperature, top-k, top-p and min-p, written for clarity rather than speed."""
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(probs.argmax(), len(probs)).double()
    probs = probs ** (1 / sampling.temperature)
    probs = probs / probs.sum()
    order = sorted(range(len(probs)), key=lambda token: -float(probs[token]))
    if sampling.top_k:
        order = order[: sampling.top_k]
    mass = sum(float(probs[token]) for token in order)
    kept, above = [], 0.0
    for token in order:
        if above >= sampling.top_p * mass:
            break
        kept.append(token)
        above += float(probs[token])
    kept = [token for token in kept if probs[token] >= sampling.min_p * probs[kept[0]]]
    result = torch.zeros_like(probs)
    result[kept] = probs[kept]
    return result / result.sum()
