"""The draft together with its loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gkt_plugins.distill.divergences import chunked_divergence, token_divergences
from gkt_plugins.distill.models import Halves
from gkt_plugins.distill.options import LossSection
from gkt_plugins.distill.selection import select_tokens
from gkt_plugins.distill.stream import Part

__all__ = ["DraftWithLoss"]


class DraftWithLoss(nn.Module):
    """The draft with the loss inside its forward call, so that DDP and autocast see one ordinary module."""

    def __init__(self, draft: Any, target: Halves, reference: Halves | None, loss: LossSection) -> None:
        super().__init__()
        self.draft = draft
        self._halves = Halves(draft)
        self._target = target
        self._reference = reference
        self._loss = loss

    def forward(self, parts: Sequence[Part], target_states: Sequence[Tensor]) -> Tensor:
        """The sum of the loss over all picked positions, which the caller divides.

        ``target_states``: of each part, [n, hidden] of the target at the picked positions.
        """
        total = torch.zeros((), device=target_states[0].device)
        for part, states in zip(parts, target_states, strict=True):
            hidden = self._halves.hidden(part.ids).flatten(0, 1)[part.picked]
            weights = self._weights(part, states, hidden) if self._reference is not None else None
            total = total + chunked_divergence(
                self._loss.divergence,
                states,
                self._target_head,
                hidden,
                self._halves.head,
                weights=weights,
                beta=self._loss.beta,
                temperature=self._loss.temperature,
                chunk_tokens=self._loss.chunk_tokens,
            )
        return total

    def _target_head(self, states: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
            return self._target.head(states)

    @torch.no_grad()
    def _weights(self, part: Part, states: Tensor, hidden: Tensor) -> Tensor:
        """AdaSPEC: [n] 1 / share for the tokens that are worth training, 0 for the others."""
        assert self._reference is not None
        known = self._reference.hidden(part.ids).flatten(0, 1)[part.picked]
        losses = self._losses(states, hidden, self._halves), self._losses(states, known, self._reference)
        chosen = select_tokens(*losses, self._loss.keep)
        return chosen.float() * (len(chosen) / chosen.sum())

    def _losses(self, states: Tensor, hidden: Tensor, model: Halves) -> Tensor:
        """[n] forward KL of ``model`` at each position."""
        return token_divergences(
            "forward_kl", states, self._target_head, hidden, model.head, chunk_tokens=self._loss.chunk_tokens
        )
