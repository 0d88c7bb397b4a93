"""Which tokens are worth a small draft's training."""

from __future__ import annotations

import torch
from torch import Tensor

from gkt_plugins.errors import ConfigError

__all__ = ["select_tokens"]


def select_tokens(draft_loss: Tensor, reference_loss: Tensor, keep: float) -> Tensor:
    """[n] bool: the tokens on which the draft lags furthest behind a reference draft of its own size.

    What the reference has not learnt either is out of reach, and what the draft knows already needs no training.

    :param draft_loss: [n] loss of each token, the draft's now.
    :param reference_loss: [n] the same loss of the reference, a copy of the draft that was distilled before.
    :param keep: share of tokens to keep, in (0, 1]; ⌈keep · n⌉ of them. Of equals, the earlier ones.
    :raises ConfigError: ``keep`` is out of range.

    Source: AdaSPEC, arXiv:2510.19779.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"the share of tokens to keep must be in (0, 1], got {keep!r}; 1 keeps all")
    count = -int(-keep * len(draft_loss) // 1)
    order = (draft_loss - reference_loss).detach().argsort(descending=True, stable=True)
    selected = torch.zeros(len(draft_loss), dtype=torch.bool, device=draft_loss.device)
    selected[order[:count]] = True
    return selected
