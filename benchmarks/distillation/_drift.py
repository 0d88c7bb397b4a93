"""How far lenient verification takes the output from the target, at one drafted position."""

from __future__ import annotations

import torch
from torch import Tensor

from gkt_plugins.contracts import LeniencyRule

__all__ = ["greedy_drift", "lenient_distribution", "sampled_drift"]


def lenient_distribution(p: Tensor, q: Tensor, rule: LeniencyRule, epsilon: float) -> Tensor:
    """[n, vocab] what a token drawn from ``q`` becomes under :class:`LenientVerifier`: passed, or recovered.

    It passes with min(1, f(p, ε) / q); what is left of the probability goes to max(0, p − q), normalised.
    """
    passed = torch.minimum(q, rule(p, epsilon))
    residual = (p - q).clamp(min=0)
    left = (1 - passed.sum(-1, keepdim=True)).clamp(min=0)
    weight = residual.sum(-1, keepdim=True)
    # No residual: p = q, and whatever is left of the probability is rounding.
    recovered = torch.where(weight > 0, residual / weight.clamp(min=torch.finfo(p.dtype).tiny), p)
    return passed + left * recovered


def sampled_drift(p: Tensor, q: Tensor, rule: LeniencyRule, epsilon: float) -> Tensor:
    """[n] total variation between :func:`lenient_distribution` and ``p``, in [0, 1]."""
    return (lenient_distribution(p, q, rule, epsilon) - p).abs().sum(-1) / 2


def greedy_drift(p: Tensor, q: Tensor, epsilon: float) -> Tensor:
    """[n] 1 where the lenient token at temperature 0 is not the target's own, else 0: total variation of one-hots."""
    drafted = q.argmax(-1, keepdim=True)
    passes = p.gather(-1, drafted) >= epsilon * p.amax(-1, keepdim=True)
    return (passes & (drafted != p.argmax(-1, keepdim=True))).squeeze(-1).double()
