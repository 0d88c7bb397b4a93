"""Who decides how much of a drafted block is kept.

Vectorised over the batch, on the model's device. Only the probabilities of drafted tokens are read at every position;
a residual distribution is built for one position of each row.

Sources: Leviathan et al. 2023, arXiv:2211.17192, algorithm 1; leniency: Zhou et al. 2024 (DistillSpec),
arXiv:2310.08461.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gkt_plugins.contracts import LeniencyRule, Noise, Proposal, TargetScores, Verdict
from gkt_plugins.speculation.leniency import check_epsilon
from gkt_plugins.speculation.sampling import sample

__all__ = ["ExactVerifier", "LenientVerifier", "drafted_probs"]


class ExactVerifier:
    """Keeps the target's distribution: accept with min(1, p/q), recover from max(0, p - q), normalised.

    At temperature 0 that is: accept while the draft is the target's most likely token.
    """

    def verify(self, proposal: Proposal, target: TargetScores, noise: Noise) -> Verdict:
        if all(target.greedy):
            best = target.argmax()
            return _greedy_verdict(proposal, proposal.ids == best[:, :-1], best)
        p, q = drafted_probs(proposal, target.probs())
        return _sampled_verdict(proposal, target.probs(), noise, noise.accept * q < p)


class LenientVerifier:
    """Accepts more than the exact verifier, by a rule: with min(1, f(p, epsilon)/q). The output drifts from the target.

    At temperature 0 no rule is used: a token passes when p(token) >= epsilon * max p, on the model's own distribution.
    """

    def __init__(self, rule: LeniencyRule, epsilon: float) -> None:
        self._rule = rule
        self._epsilon = check_epsilon(epsilon)
        self._floor = math.log(epsilon)

    def verify(self, proposal: Proposal, target: TargetScores, noise: Noise) -> Verdict:
        greedy = target.greedy
        if all(greedy):
            return _greedy_verdict(proposal, self._close(proposal, target), target.argmax())
        probs = target.probs()
        p, q = drafted_probs(proposal, probs)
        passed = noise.accept * q < self._rule(p, self._epsilon)
        if any(greedy):
            mask = torch.tensor(greedy, device=p.device)[:, None]
            passed = torch.where(mask, self._close(proposal, target), passed)
        verdict = _sampled_verdict(proposal, probs, noise, passed)
        if any(greedy):  # a residual could take the greedy token away where the draft also liked it
            best = target.argmax().gather(1, verdict.accepted[:, None]).squeeze(1)
            verdict.next_ids = torch.where(mask[:, 0], best, verdict.next_ids)
        return verdict

    def _close(self, proposal: Proposal, target: TargetScores) -> Tensor:
        if self._epsilon == 1.0:  # ties of the logits would pass the inequality; argmax takes one of them
            return proposal.ids == target.argmax()[:, :-1]
        return target.log_ratio(proposal.ids) >= self._floor


def drafted_probs(proposal: Proposal, probs: Tensor) -> tuple[Tensor, Tensor]:
    """[B, gamma] each: what target and draft gave to the drafted tokens."""
    ids = proposal.ids[..., None]
    p = probs[:, : proposal.ids.shape[1]].gather(-1, ids).squeeze(-1)
    q = torch.ones_like(p) if proposal.probs is None else proposal.probs.gather(-1, ids).squeeze(-1)
    return p, q


def _accepted(proposal: Proposal, passed: Tensor) -> Tensor:
    """[B] length of the leading run of passed tokens, within what each row really drafted."""
    if proposal.counts is not None:
        passed = passed & (torch.arange(passed.shape[1], device=passed.device) < proposal.counts[:, None])
    return passed.long().cumprod(-1).sum(-1)


def _greedy_verdict(proposal: Proposal, passed: Tensor, best: Tensor) -> Verdict:
    accepted = _accepted(proposal, passed)
    return Verdict(accepted, best.gather(1, accepted[:, None]).squeeze(1))


def _sampled_verdict(proposal: Proposal, probs: Tensor, noise: Noise, passed: Tensor) -> Verdict:
    accepted = _accepted(proposal, passed)
    gamma = proposal.ids.shape[1]
    rows = torch.arange(len(accepted), device=accepted.device)
    p = probs[rows, accepted]
    if gamma == 0:
        return Verdict(accepted, sample(p, noise.sample))
    at = accepted.clamp(max=gamma - 1)
    if proposal.probs is None:
        residual = p.scatter(1, proposal.ids[rows, at, None], 0.0)
    else:
        residual = (p - proposal.probs[rows, at]).clamp_(min=0.0)
    drafted = gamma if proposal.counts is None else proposal.counts
    # All accepted: the bonus token is the target's own. Nothing left of a rejection is rounding (p = q): also p.
    whole = (accepted >= drafted) | (residual.sum(-1) <= 0)
    return Verdict(accepted, sample(torch.where(whole[:, None], p, residual), noise.sample))
