"""Lossless verification of a block as a whole: the target's distribution, and more of each block kept.

Token by token, a draft that said something too often at one place is rejected there, however well it goes on. Judged
as a whole, what it said too seldom before makes up for it. No lossless rule keeps more of a block in expectation.

Source: Sun et al. 2025, Block Verification Accelerates Speculative Decoding, arXiv:2403.10444.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gkt_plugins.contracts import Noise, Proposal, TargetScores, Verdict
from gkt_plugins.speculation.sampling import sample
from gkt_plugins.speculation.verifiers import ExactVerifier, drafted_probs

__all__ = ["BlockVerifier"]


class BlockVerifier:
    """Keeps the longest prefix that passes as a whole, whatever became of shorter ones.

    The prefix of i tokens weighs r_i = min(1, r_{i-1} p_i / q_i), with r_0 = 1. What the target still has to say after
    it, beyond what the draft says next, is max(r_i p - q, 0). With the sum s_i of that remainder the prefix passes with
    chance s_i / (s_i + 1 - r_i), the whole block with chance r_gamma. The next token comes from the remainder,
    normalised, and after the whole block from the target's own distribution.

    At temperature 0 this is the exact verifier: accept while the draft is the target's most likely token.
    """

    def __init__(self) -> None:
        self._exact = ExactVerifier()

    def verify(self, proposal: Proposal, target: TargetScores, noise: Noise) -> Verdict:
        if all(target.greedy) or proposal.ids.shape[1] == 0:
            return self._exact.verify(proposal, target, noise)
        probs = target.probs()
        weights = _weights(*drafted_probs(proposal, probs))
        passed = noise.accept < _chances(proposal, probs, weights)
        lengths = torch.arange(1, passed.shape[1] + 1, device=passed.device)
        if proposal.counts is not None:
            passed &= lengths <= proposal.counts[:, None]
        accepted = (passed * lengths).amax(-1)
        return Verdict(accepted, sample(_following(proposal, probs, weights, accepted), noise.sample))


def _weights(p: Tensor, q: Tensor) -> Tensor:
    """[B, gamma + 1] r_0 to r_gamma, from the probabilities [B, gamma] of the drafted tokens."""
    weights = [torch.ones_like(p[:, 0])]
    for ratio in (p / q).unbind(1):
        weights.append((weights[-1] * ratio).clamp(max=1.0))
    return torch.stack(weights, dim=1)


def _chances(proposal: Proposal, probs: Tensor, weights: Tensor) -> Tensor:
    """[B, gamma] chance that the prefix of 1, 2, … gamma tokens passes, were longer ones not there."""
    q = None if proposal.probs is None else proposal.probs[:, 1:]
    left = _remainder(probs[:, 1:-1], weights[:, 1:-1], proposal.ids[:, 1:], q).sum(-1)
    lost = 1.0 - weights[:, 1:-1]
    # Nothing lost and nothing left: draft and target agree on what follows, so the next prefix weighs as much.
    chances = torch.cat([torch.where(lost > 0, left / (left + lost), 1.0), weights[:, -1:]], dim=1)
    if proposal.counts is None:
        return chances
    whole = torch.arange(1, chances.shape[1] + 1, device=chances.device) == proposal.counts[:, None]
    return torch.where(whole, weights[:, 1:], chances)


def _following(proposal: Proposal, probs: Tensor, weights: Tensor, accepted: Tensor) -> Tensor:
    """[B, vocab] what the token after the accepted prefix is drawn from; it need not add up to 1."""
    gamma = proposal.ids.shape[1]
    rows = torch.arange(len(accepted), device=accepted.device)
    at = accepted.clamp(max=gamma - 1)
    p = probs[rows, accepted]
    q = None if proposal.probs is None else proposal.probs[rows, at]
    remainder = _remainder(p, weights[rows, accepted], proposal.ids[rows, at], q)
    # All accepted: the bonus token is the target's own. Nothing left of a rejection is rounding (p = q): also p.
    own = (accepted >= (gamma if proposal.counts is None else proposal.counts)) | (remainder.sum(-1) <= 0)
    return torch.where(own[:, None], p, remainder)


def _remainder(p: Tensor, weights: Tensor, ids: Tensor, q: Tensor | None) -> Tensor:
    """[…, vocab] max(weight p - q, 0), where q None is certain of ``ids`` […]."""
    weighted = weights[..., None] * p
    if q is None:
        return weighted.scatter(-1, ids[..., None], 0.0)
    return (weighted - q).clamp_(min=0.0)
