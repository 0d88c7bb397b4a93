"""Leniency without touching vLLM's sampler: one logit per drafted token is changed, in place, and put back afterwards.

Lossless verification accepts a drafted token x with min(1, p(x) / q(x)). When p(x) is replaced by min(f(p(x)), just
below 1), by moving that one logit, the unchanged sampler accepts with min(1, f(p) / q): the lenient rule, whatever q
is. On a rejection the residual has no mass at x, and every other token keeps its share of p, scaled down.

At temperature 0 the sampler knows only the argmax, so x passes when its logit is moved to the top: where
p(x) >= epsilon * max p.

Source of the rules: Zhou et al. 2024 (DistillSpec), arXiv:2310.08461.
"""

from __future__ import annotations

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
    greedy: Tensor | None,
    rule: LeniencyRule,
    *,
    rows: Tensor | None = None,
) -> Lifted:
    """Move the drafted tokens' logits, so that exact verification decides leniently.

    :param logits: [N, V] of the target, after temperature and truncation; changed in place.
    :param ids: [M] drafted tokens. A negative one, or one whose logit is -inf (a grammar forbids it), is left alone.
    :param epsilon: [M] leniency in (0, 1]; where it is 1 the logit is left alone.
    :param greedy: [M] bool, which of them are at temperature 0; None: none.
    :param rows: [M] row of ``logits`` of each drafted token, increasing; None: the first M.
    """
    rows = torch.arange(len(ids), device=logits.device) if rows is None else rows
    real = (ids >= 0) & (epsilon < 1.0)
    at = ids.clamp(min=0)
    lifted = Lifted(logits, rows, at)
    before = logits[rows, at].float()
    real &= before > -torch.inf
    top, normaliser = _row_maxima_and_normalisers(logits, rows)
    p = (before - normaliser).exp()
    wanted = torch.maximum(rule(p, epsilon), p).clamp(max=_ALMOST_ONE)
    after = torch.where(p < _ALMOST_ONE, before + wanted.logit() - p.logit(), before).to(logits.dtype)
    if greedy is not None:
        passes = before - top.float() >= epsilon.log()
        kind = torch.finfo(top.dtype)
        on_top = top + top.abs().clamp(min=kind.tiny) * kind.eps  # the next number, or the one after it
        after = torch.where(greedy, torch.where(passes, on_top, logits[rows, at]), after)
    logits[rows, at] = torch.where(real, after, logits[rows, at])
    return lifted


def _row_maxima_and_normalisers(logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """[M] each: the largest logit, in its own type, and log Σ exp in float32, of each of ``rows``."""
    tops, sums = [], []
    for some in rows.split(_ROWS):
        block = logits[some]
        tops.append(block.amax(-1))
        sums.append(block.float().logsumexp(-1))
    return torch.cat(tops), torch.cat(sums)
