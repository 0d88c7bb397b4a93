"""A key-value cache whose rows each have their own length.

Keys and values lie in one preallocated tensor per layer, [slots, heads, capacity, head size]. A row owns a slot and
its tokens stand there without holes, at their positions. What lies behind a row's length is dead: masks hide it and
later tokens overwrite it, so rolling back is nothing but a smaller length, which the caller keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["RowCache"]

_STEP = 256
"""Capacity grows in multiples of this many tokens, and at least by half, so that growing stays rare."""


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer."""

    is_sliding = False  # sliding windows are a matter of masks here: all keys are kept, so that any rollback is exact

    def __init__(self, cache: RowCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        slots, capacity = self._cache.slots, self._cache.capacity
        # Zeros, not "empty": a masked position has weight 0, and 0 times a stray NaN would be NaN.
        self.keys = key_states.new_zeros(slots, key_states.shape[1], capacity, key_states.shape[3])
        self.values = value_states.new_zeros(slots, value_states.shape[1], capacity, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        return self._cache.write(self.keys, key_states), self._cache.write(self.values, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.visible, 0

    def get_seq_length(self) -> int:
        return self._cache.visible - self._cache.width

    def get_max_length(self) -> int:
        return -1


class RowCache(Cache):
    """The cache object that a transformers model fills during one forward call announced by :meth:`begin`."""

    def __init__(self, num_layers: int) -> None:
        self._own = [_Layer(self) for _ in range(num_layers)]
        super().__init__(layers=list(self._own))
        self.slots = 0
        self.capacity = 0
        self.visible = 0
        """Keys that the queries of the current call may see, the new ones included."""
        self.width = 0
        """Tokens per row of the current call."""
        self._rows: Tensor | None = None
        self._starts: Sequence[int] = ()
        self._index: tuple[Tensor, Tensor] | None = None
        self._count = 0

    def reserve(self, slots: int, length: int) -> None:
        """Make room for ``slots`` rows of ``length`` tokens, keeping what is there."""
        if slots <= self.slots and length <= self.capacity:
            return
        self.slots = max(self.slots, slots)
        if length > self.capacity:
            self.capacity = -(-max(length, self.capacity * 3 // 2) // _STEP) * _STEP
        for layer in self._own:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = self._grown(layer.keys), self._grown(layer.values)

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self.slots, old.shape[1], self.capacity, old.shape[3])
        new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def begin(self, starts: Sequence[int], width: int, slots: Tensor | None, positions: Tensor) -> None:
        """Announce a call: row i writes ``width`` tokens from ``starts[i]`` on, into ``slots[i]``.

        ``slots``: [n], or None for slots 0 to n - 1 in order. ``positions``: [n, width].
        """
        self.width = width
        self.visible = max(starts) + width
        self._rows, self._starts, self._count = slots, starts, len(starts)
        if slots is None and min(starts) == max(starts):
            self._index = None  # all rows at one position: a plain slice
        else:
            rows = torch.arange(len(starts), device=positions.device) if slots is None else slots
            self._index = rows[:, None], positions

    def write(self, store: Tensor, new: Tensor) -> Tensor:
        """Put ``new`` [n, heads, width, size] in its place; return all that the queries may look at."""
        if self._index is None:
            start = self._starts[0]
            store[: self._count, :, start : start + self.width] = new
        else:
            rows, positions = self._index
            store[rows, :, positions] = new.transpose(1, 2)
        if not any(self._starts):
            return new  # nothing came before
        if self._rows is None:
            return store[: self._count, :, : self.visible]
        return store[self._rows, :, : self.visible]

    def move(self, source: int, destination: int, length: int) -> None:
        """Copy the first ``length`` tokens of a row to another slot."""
        for layer in self._own:
            if layer.keys is not None and layer.values is not None:
                layer.keys[destination, :, :length] = layer.keys[source, :, :length]
                layer.values[destination, :, :length] = layer.values[source, :, :length]
