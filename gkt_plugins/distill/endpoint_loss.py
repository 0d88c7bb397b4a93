"""Forward KL to a target of which only the likeliest tokens are known, and what is lost by that.

An endpoint tells p of k tokens. The rest of its vocabulary is one more outcome, with the mass m that is left::

    KL_k = Σ_k p log(p/q) + m log(m / q_rest),        q_rest = 1 − Σ_k q

Three things are certain, whatever the unknown tail is:

* KL_k ≤ KL, because lumping outcomes together never makes a divergence greater.
* The gradient by the logits differs from that of KL at unknown tokens only, and by at most 2 m in sum: there KL has
  q_i − p_i and KL_k has q_i − m q_i / q_rest, and both p and m q / q_rest sum to m.
* Σ min(p, q), the acceptance, is at least its known part and at most that plus min(m, q_rest).

With text alone, k = 1 and p = 1 at the token that was written: sequence-level distillation (SeqKD).

Sources: Kim and Rush 2016 (SeqKD), arXiv:1606.07947; the bounds are the data-processing inequality and the triangle
inequality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gkt_plugins.distill.models import Halves
from gkt_plugins.distill.options import LossSection
from gkt_plugins.distill.stream import Part

__all__ = ["DraftWithScores", "Scores", "known_overlap", "truncated_kl"]

_LEAST = 1e-6
"""Of q_rest: less cannot be told from rounding in float32."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What is known of a target at n positions."""

    ids: Tensor
    """[n, k] int64 tokens; where fewer than k are known, any."""
    probs: Tensor
    """[n, k] float32 probabilities in [0, 1]; 0 where fewer than k are known."""

    @property
    def rest(self) -> Tensor:
        """[n] mass of the tokens that are not known, in [0, 1]."""
        return (1 - self.probs.sum(-1)).clamp(0, 1)

    def to(self, device: torch.device | str) -> Scores:
        """The same on another device."""
        return Scores(self.ids.to(device), self.probs.to(device))


def truncated_kl(scores: Scores, draft_logits: Tensor) -> Tensor:
    """[n] KL_k in nats. ``draft_logits``: [n, vocab]; no gradient reaches the scores."""
    p, m = scores.probs, scores.rest
    log_q = draft_logits.float().log_softmax(-1).gather(-1, scores.ids)
    known = torch.where(p > 0, p * (p.clamp(min=1e-30).log() - log_q), 0.0).sum(-1)
    rest = torch.where(m > _LEAST, m * (m.clamp(min=_LEAST).log() - _rest(log_q, p).log()), 0.0)
    return known + rest


@torch.no_grad()
def known_overlap(scores: Scores, draft_logits: Tensor) -> tuple[Tensor, Tensor]:
    """[n] the known part of Σ min(p, q), and [n] how much the unknown tail may add at most."""
    log_q = draft_logits.float().log_softmax(-1).gather(-1, scores.ids)
    overlap = torch.minimum(scores.probs, log_q.exp()).sum(-1)
    return overlap, torch.minimum(scores.rest, _rest(log_q, scores.probs))


def _rest(log_q: Tensor, p: Tensor) -> Tensor:
    """[n] the draft's mass on the tokens that are not known."""
    return (1 - torch.where(p > 0, log_q.exp(), 0.0).sum(-1)).clamp(min=_LEAST)


class DraftWithScores(nn.Module):
    """The draft with the loss inside its forward call; see :class:`~gkt_plugins.distill.loss.DraftWithLoss`."""

    def __init__(self, draft: Any, loss: LossSection) -> None:
        super().__init__()
        self.draft = draft
        self._halves = Halves(draft)
        self._chunk_tokens = loss.chunk_tokens

    def forward(self, parts: Sequence[Part], scores: Sequence[Scores]) -> Tensor:
        """The sum of the loss over all picked positions, which the caller divides."""
        total = torch.zeros((), device=parts[0].ids.device)
        for part, known in zip(parts, scores, strict=True):
            hidden = self._halves.hidden(part.ids).flatten(0, 1)[part.picked]
            for begin in range(0, len(hidden), self._chunk_tokens):
                here = slice(begin, begin + self._chunk_tokens)
                total = total + checkpoint(  # logits exist for one chunk at a time
                    self._chunk, hidden[here], known.ids[here], known.probs[here],
                    use_reentrant=False, preserve_rng_state=False,
                )  # fmt: skip
        return total

    def _chunk(self, hidden: Tensor, ids: Tensor, probs: Tensor) -> Tensor:
        return truncated_kl(Scores(ids, probs), self._halves.head(hidden)).sum()
