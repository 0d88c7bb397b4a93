"""What the frozen target makes of a part: in one forward call without gradients, and not twice for the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gkt_plugins.distill.models import Halves
from gkt_plugins.distill.samples import Sample, collate
from gkt_plugins.distill.stream import Part
from gkt_plugins.distill.target_scores import HiddenStore
from gkt_plugins.speculation.packed_linear import packed_linears

__all__ = ["TargetStates"]


class TargetStates:
    """Hidden states of the target where answers are predicted."""

    def __init__(self, target: Any, halves: Halves, pad_id: int, *, max_bytes: int = 2**30) -> None:
        """``max_bytes``: of what is kept of answers that come again."""
        self._target = target
        self._halves = halves
        self._pad_id = pad_id
        self._store = HiddenStore(self._computed, max_bytes=max_bytes)

    def states(self, part: Part) -> Tensor:
        """[n, hidden] at the part's picked positions."""
        if any(sample.key for sample in part.samples):
            return self._store.states(part.samples)
        return self._forward(part.ids, part.picked)

    def _computed(self, samples: Sequence[Sample]) -> Tensor:
        batch = collate(samples, self._pad_id).to(self._target.device)
        return self._forward(batch.ids, batch.predicts_answer.flatten().nonzero()[:, 0])

    def _forward(self, ids: Tensor, picked: Tensor) -> Tensor:
        with torch.inference_mode(), packed_linears(self._target, rows="many"):
            hidden = self._halves.hidden(ids)
        return hidden.flatten(0, 1)[picked]  # outside of inference mode: a tensor that autograd may keep
