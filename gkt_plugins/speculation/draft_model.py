"""Drafting with a small causal language model that keeps its own cache."""

from __future__ import annotations

import torch
from torch import Tensor

from gkt_plugins.contracts import DecodeState, Proposal
from gkt_plugins.speculation.target import CausalTarget

__all__ = ["ModelDrafter"]


class ModelDrafter:
    """Proposes what a draft model would say. Its cache follows the rows: rolled back on rejection, never recomputed.

    Between blocks a row lacks one token of the cache, or two when its whole block was accepted, so that drafting
    begins with one call that feeds them and goes on with single tokens.
    """

    def __init__(self, model: CausalTarget, vocab_size: int) -> None:
        """``vocab_size``: the target's. A draft of another size is cut, or padded with probability 0."""
        self._model = model
        self._vocab_size = vocab_size
        self._rows: list[int] = []
        self._cached: list[int] = []
        self._proposed: tuple[list[int], int] = ([], 0)

    @property
    def seconds(self) -> float:
        """Time spent in the draft model's forward calls so far."""
        return self._model.seconds

    def propose(self, state: DecodeState, gamma: int) -> Proposal:
        """See :meth:`gkt_plugins.contracts.Drafter.propose`."""
        self._follow(state)
        self._catch_up(state)
        lengths = list(state.lengths)
        self._cached = [min(cached, length - 1) for cached, length in zip(self._cached, lengths, strict=True)]
        gaps = [length - cached for length, cached in zip(lengths, self._cached, strict=True)]
        width = max(gaps)
        if width == 1:
            last = torch.tensor(lengths, device=state.token_ids.device)[:, None] - 1
            logits = self._model.forward(self._known(state.token_ids.gather(1, last)), self._cached)[:, -1]
        else:
            ids = self._known(_window(state.token_ids, self._cached, width))
            logits = self._model.forward(ids, self._cached, last=[gap - 1 for gap in gaps])
        drafted = state.token_ids[:, :0]
        probs: list[Tensor] = []
        for i in range(gamma):
            if i:
                logits = self._model.forward(self._known(drafted[:, -1:]), [length + i - 1 for length in lengths])[
                    :, -1
                ]
            logits = self._resized(logits)
            if state.greedy:
                token = logits.argmax(-1)
            else:
                probs.append(state.draft_probs(logits, drafted))
                token = state.sample(probs[-1])
            drafted = torch.cat([drafted, token[:, None]], dim=1)
        self._proposed = lengths, gamma
        return Proposal(drafted, torch.stack(probs, dim=1) if probs else None)

    def commit(self, kept: Tensor) -> None:
        """See :meth:`gkt_plugins.contracts.Drafter.commit`."""
        lengths, gamma = self._proposed
        # The last drafted token was never fed, so it is not in the cache even when it was kept.
        self._cached = [length + min(k, gamma - 1) for length, k in zip(lengths, kept.tolist(), strict=True)]

    def _follow(self, state: DecodeState) -> None:
        """Bring the cache's slots into the batch's order. Rows that left are overwritten."""
        for slot, identity in enumerate(state.rows):
            if slot < len(self._rows) and self._rows[slot] == identity:
                continue
            cached = 0
            if identity in self._rows[slot + 1 :]:  # the loop closes gaps with rows from further behind
                source = self._rows.index(identity, slot + 1)
                cached = self._cached[source]
                self._model.move(source, slot, cached)
            if slot < len(self._rows):
                self._rows[slot], self._cached[slot] = identity, cached
            else:
                self._rows.append(identity)
                self._cached.append(cached)
        del self._rows[len(state.rows) :], self._cached[len(state.rows) :]

    def _catch_up(self, state: DecodeState) -> None:
        """Feed rows that lack more than two tokens: new ones, and all after a time without speculation."""
        behind = [b for b, length in enumerate(state.lengths) if length - self._cached[b] > 2]
        if not behind:
            return
        starts = [self._cached[b] for b in behind]
        lacking = [state.lengths[b] - 1 - self._cached[b] for b in behind]
        ids = self._known(_window(state.token_ids[behind], starts, max(lacking)))
        self._model.forward(ids, starts, slots=behind, last=[0] * len(behind))
        for b in behind:
            self._cached[b] = state.lengths[b] - 1

    def _known(self, ids: Tensor) -> Tensor:
        """``ids`` as the draft model can take them: what only a larger target knows becomes its last token."""
        size = self._model.vocab_size
        return ids if size >= self._vocab_size else ids.clamp(max=size - 1)

    def _resized(self, logits: Tensor) -> Tensor:
        missing = self._vocab_size - logits.shape[-1]
        if missing <= 0:
            return logits[:, : self._vocab_size]
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)


def _window(ids: Tensor, starts: list[int], width: int) -> Tensor:
    """[n, width] of each row's ids from its start on; beyond the end of ``ids``, its last column, as padding."""
    columns = torch.tensor(starts, device=ids.device)[:, None] + torch.arange(width, device=ids.device)
    return ids.gather(1, columns.clamp_(max=ids.shape[1] - 1))
