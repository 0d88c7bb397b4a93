"""Leniency without touching vLLM's sampler: one logit per drafted token is changed, in place, and put back afterwards.

Lossless verification accepts a drafted token x with min(1, p(x) / q(x)). When p(x) is replaced by min(f(p(x)), just
below 1), by moving that one logit, the unchanged sampler accepts with min(1, f(p) / q): the lenient rule, whatever q
is. On a rejection the residual has no mass at x, and every other token keeps its share of p, scaled down.

At temperature 0 the sampler knows only the argmax, so x passes when its logit is moved to the top: where
p(x) >= epsilon * max p.

Source of the rules: Zhou et al. 2024 (DistillSpec), arXiv:2310.08461.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gkt_plugins.contracts import LeniencyRule

__all__ = ["Lifted", "lift"]

_ALMOST_ONE = 1.0 - 2.0**-20
"""A token of probability 1 would leave nothing to recover from."""

_ROWS = 32
"""Rows whose normalisers are taken at a time: a softmax of all rows would be as large as the logits."""


class Lifted:
    """What was changed, until :meth:`restore`."""

    def __init__(self, logits: Tensor, rows: Tensor, ids: Tensor) -> None:
        self._logits = logits
        self._at = (rows, ids)
        self._before = logits[rows, ids]

    def restore(self) -> None:
        """Put the logits back, bit by bit as they were."""
        self._logits[self._at] = self._before


def lift(
    logits: Tensor,
    ids: Tensor,
    epsilon: Tensor,
    values: Iterable[float],
    greedy: Tensor | None,
    rule: LeniencyRule,
) -> Lifted:
    """Move the drafted tokens' logits, so that exact verification decides leniently.

    :param logits: [N, V] of the target, after temperature and truncation; changed in place.
    :param ids: [N] drafted tokens. A row with a negative one (it verifies nothing), or with one whose logit is -inf (a
        grammar forbids it), is left alone.
    :param epsilon: [N] float64 leniency in (0, 1]; a row where it is 1 is left alone.
    :param values: every epsilon that may occur, known without asking the device; a rule takes one at a time.
    :param greedy: [N] bool, which rows are at temperature 0; None: none.
    """
    rows = torch.arange(len(ids), device=logits.device)
    at = ids.clamp(min=0)
    lifted = Lifted(logits, rows, at)
    top, normaliser = _row_maxima_and_normalisers(logits)
    now = logits[rows, at]
    before = now.float()
    p = (before - normaliser).exp()
    after = now
    for value in sorted(set(values) - {1.0}):
        its = (epsilon == value) & (ids >= 0) & (before > -torch.inf)
        wanted = torch.maximum(rule(p, value), p).clamp(max=_ALMOST_ONE)
        # before - logit(p) is normaliser + log(1 - p), which stays finite where float32 takes p for 0.
        raised = torch.where(p < _ALMOST_ONE, wanted.logit() + normaliser + (-p).log1p(), before).to(logits.dtype)
        if greedy is not None:
            passes = before - top.float() >= math.log(value)
            raised = torch.where(greedy, torch.where(passes, _above(top), now), raised)
        after = torch.where(its, raised, after)
    logits[rows, at] = after
    return lifted


def _above(top: Tensor) -> Tensor:
    """A number of the same type that is larger, by one or two of its last places."""
    kind = torch.finfo(top.dtype)
    return top + top.abs().clamp(min=kind.tiny) * kind.eps


def _row_maxima_and_normalisers(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[N] each: the largest logit, in its own type, and log Σ exp in float32, of each row."""
    tops, sums = [], []
    for block in torch.split(logits, _ROWS):
        tops.append(block.amax(-1))
        sums.append(block.float().logsumexp(-1))
    return torch.cat(tops), torch.cat(sums)
