"""The rows under way, and their place: row i of the batch has slot i of the target's cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkt_plugins.contracts import Noise
from gkt_plugins.speculation.noise import ACCEPT, SAMPLE, uniform
from gkt_plugins.speculation.rows import Row
from gkt_plugins.speculation.sampling import RowOptions
from gkt_plugins.speculation.state import BatchState
from gkt_plugins.speculation.target import CausalTarget

__all__ = ["Batch", "View"]


class View:
    """Some rows with what tensors need to know of them. Made anew when rows come or go, not at every step."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self.rows = tuple(rows)
        self.device = device
        self.identities = [row.identity for row in rows]
        self.options = RowOptions.pack(
            [row.request.sampling for row in rows], [row.request.processors for row in rows], device
        )
        self._seeds = np.array([row.seed for row in rows], dtype=np.uint64)

    @property
    def lengths(self) -> list[int]:
        return [len(row.tokens) for row in self.rows]

    def noise(self, gamma: int) -> Noise:
        """Draws of the next block; greedy rows use none, so a wholly greedy batch gets zeros."""
        if self.options.plain:
            size = len(self.rows)
            return Noise(torch.zeros(size, gamma, device=self.device), torch.zeros(size, device=self.device))
        accept = uniform(self._seeds, self._positions(), gamma, ACCEPT)
        sample = uniform(self._seeds, self._positions(), 1, SAMPLE)[:, 0]
        return Noise(torch.from_numpy(accept).to(self.device), torch.from_numpy(sample).to(self.device))

    def state(self, ids: Tensor) -> BatchState:
        """What a drafter sees. ``ids``: [B, T]."""
        return BatchState(self.identities, ids, self.lengths, self.options, self._seeds, self._positions())

    def _positions(self) -> npt.NDArray[np.uint64]:
        return np.array([row.generated for row in self.rows], dtype=np.uint64)


class Batch:
    """Rows in slots, without holes while a block is decoded."""

    def __init__(self, target: CausalTarget, max_batch: int) -> None:
        self.rows: list[Row] = []
        self._target = target
        self._max_batch = max_batch
        self._ids = torch.zeros(max_batch, 0, dtype=torch.int64, device=target.device)
        self._view: View | None = None

    @property
    def free(self) -> int:
        """Slots that waiting rows could take."""
        return self._max_batch - sum(not row.done for row in self.rows)

    def exchange(self, entering: Sequence[Row]) -> list[int]:
        """Put new rows in the place of finished ones, and close the gaps that remain; return the new rows' slots."""
        holes = [slot for slot, row in enumerate(self.rows) if row.done]
        if not holes and not entering:
            return []
        self._view = None
        for row in entering:
            if holes:
                self.rows[holes.pop(0)] = row
            else:
                self.rows.append(row)
        for hole in reversed(holes):
            last = self.rows.pop()
            if hole < len(self.rows):
                self.rows[hole] = last
                self._target.move(len(self.rows), hole, len(last.tokens) - 1)
                self._ids[hole] = self._ids[len(self.rows)]
        slots = [self.rows.index(row) for row in entering]
        self._reserve(max((len(row.tokens) for row in entering), default=0))
        for slot, row in zip(slots, entering, strict=True):
            self._ids[slot, : len(row.tokens)] = torch.tensor(row.tokens, device=self._ids.device)
        return slots

    def view(self) -> View:
        """All rows."""
        if self._view is None:
            self._view = View(self.rows, self._ids.device)
        return self._view

    def ids(self, extra: int) -> Tensor:
        """[B, T] tokens of all rows, with room for ``extra`` more."""
        longest = max(len(row.tokens) for row in self.rows)
        self._reserve(longest + extra)
        return self._ids[: len(self.rows), : longest + extra]

    def prompts(self, slots: Sequence[int], width: int) -> Tensor:
        """[n, width] tokens of the rows in ``slots``."""
        return self._ids[list(slots), :width]

    def write(self, slots: Any, starts: Sequence[int], tokens: Tensor) -> None:
        """Put ``tokens`` [n, k] behind what rows have; those that rows did not keep are overwritten later."""
        columns = torch.tensor(starts, device=tokens.device)[:, None] + torch.arange(
            tokens.shape[1], device=tokens.device
        )
        self._reserve(max(starts) + tokens.shape[1])
        self._ids[torch.tensor(slots, device=tokens.device)[:, None], columns] = tokens

    def _reserve(self, length: int) -> None:
        if length > self._ids.shape[1]:
            grown = self._ids.new_zeros(self._max_batch, -(-length * 3 // 2 // 64) * 64)
            grown[:, : self._ids.shape[1]] = self._ids
            self._ids = grown
