"""The batch as a drafter sees it, at the start of a block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkt_plugins.speculation.noise import DRAFT, uniform
from gkt_plugins.speculation.sampling import RowOptions, sample

__all__ = ["BatchState"]


class BatchState:
    """The loop's :class:`~gkt_plugins.contracts.DecodeState`."""

    def __init__(self, rows: Sequence[int], token_ids: Tensor, lengths: Sequence[int], options: RowOptions,
                 seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]) -> None:  # fmt: skip
        """``seeds`` and ``positions``: [B] of the rows' noise."""
        self.rows = rows
        self.token_ids = token_ids
        self.lengths = lengths
        self.greedy = options.plain
        self._options = options
        self._seeds = seeds
        self._positions = positions
        self._draws = 0

    def draft_probs(self, logits: Tensor, drafted: Tensor) -> Tensor:
        """See :meth:`gkt_plugins.contracts.DecodeState.draft_probs`."""
        options = self._options
        scores = options.process(logits[:, None], self.token_ids, self.lengths, drafted, drafted.shape[1])
        return options.distribution(scores)[:, 0]

    def sample(self, probs: Tensor) -> Tensor:
        """See :meth:`gkt_plugins.contracts.DecodeState.sample`."""
        noise = uniform(self._seeds, self._positions, 1, DRAFT, first_lane=self._draws)[:, 0]
        self._draws += 1
        return sample(probs, torch.from_numpy(noise).to(probs.device))
