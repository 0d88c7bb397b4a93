"""What the target says about a block, computed only as far as somebody asks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gkt_plugins.speculation.sampling import RowOptions

__all__ = ["BlockScores", "KnownScores"]


class BlockScores:
    """The loop's :class:`~gkt_plugins.contracts.TargetScores`: over the target's logits of one block."""

    def __init__(
        self, logits: Tensor, options: RowOptions, ids: Tensor, lengths: Sequence[int], drafted: Tensor
    ) -> None:
        """``logits``: [B, gamma + 1, vocab]. ``ids``: [B, T] tokens before the block. ``drafted``: [B, gamma]."""
        self._options = options
        self._logits = logits if options.plain else options.process(logits, ids, lengths, drafted, 0)
        self._probs: Tensor | None = None

    @property
    def greedy(self) -> tuple[bool, ...]:
        return self._options.greedy

    def argmax(self) -> Tensor:
        return self._logits.argmax(-1)

    def probs(self) -> Tensor:
        if self._probs is None:
            self._probs = self._options.distribution(self._logits.float())
        return self._probs

    def log_ratio(self, ids: Tensor) -> Tensor:
        logits = self._logits[:, : ids.shape[1]].float()
        return logits.gather(-1, ids[..., None]).squeeze(-1) - logits.amax(-1)


class KnownScores:
    """Target scores whose distributions are known beforehand: for tests, benchmarks, and other loops."""

    def __init__(self, probs: Tensor, *, greedy: bool = False) -> None:
        """``probs``: [B, gamma + 1, vocab], the model's own. ``greedy``: every row is at temperature 0."""
        self._own = probs
        self.greedy = (greedy,) * len(probs)

    def argmax(self) -> Tensor:
        return self._own.argmax(-1)

    def probs(self) -> Tensor:
        if not all(self.greedy):
            return self._own
        return torch.zeros_like(self._own).scatter_(-1, self._own.argmax(-1, keepdim=True), 1.0)

    def log_ratio(self, ids: Tensor) -> Tensor:
        own = self._own[:, : ids.shape[1]]
        return torch.log(own.gather(-1, ids[..., None]).squeeze(-1) / own.amax(-1))
