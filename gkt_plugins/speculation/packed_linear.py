"""Linear layers on a CPU, through oneDNN with each weight laid out for it once.

PyTorch's float32 linear layer lays the whole weight matrix out anew in every call. For the few rows of a decode step
that costs more than the multiplication, and for the γ + 1 rows of a block several times as much: on one machine a block
of 5 took 1.8 plain steps that way and 0.8 this way. The packed copy costs as much memory as the weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager as Context
from contextlib import contextmanager, nullcontext
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = ["PackedLinears", "packed_linears"]

_MIN_WEIGHTS = {"few": 2**16, "many": 2**12}
"""Smaller layers stay as they are: the call costs more than the multiplication of few rows, or of many."""
_MEMORY_SHARE = 0.25
"""Of the memory that is free; larger models stay as they are."""


class PackedLinears:
    """The packed copies of one model's linear layers, in use inside ``with packed.in_use():``."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self._layers = layers
        self._forwards: list[Any] = []
        self._versions: list[tuple[int, int]] = []

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model's layers multiply with the packed weights; weights that have changed are packed again."""
        versions = [_version(layer.weight) for layer in self._layers]
        if versions != self._versions:
            self._forwards = [_packed_forward(layer) for layer in self._layers]
            self._versions = versions
        try:
            for layer, forward in zip(self._layers, self._forwards, strict=True):
                layer.__dict__["forward"] = forward  # hides the class's; nothing of it is left behind
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)


_packed: WeakKeyDictionary[nn.Module, dict[str, PackedLinears]] = WeakKeyDictionary()


def packed_linears(model: nn.Module, *, rows: Literal["few", "many"] = "few") -> Context[None]:
    """A context in which ``model``'s large float32 layers on the CPU run packed; one without effect for other models.

    Weights are packed at the first use, and kept as long as the model is.

    :param rows: ``many`` for hundreds of tokens at once, which smaller layers gain from too.
    """
    by_rows = _packed.setdefault(model, {})
    found = by_rows.get(rows)
    if found is None:
        size = _MIN_WEIGHTS[rows]
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and _worth_packing(layer, size)]
        if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight") or not _fits(layers):
            layers = []
        found = by_rows[rows] = PackedLinears(layers)
    return found.in_use() if found._layers else nullcontext()


def _worth_packing(layer: nn.Linear, size: int) -> bool:
    if type(layer) is not nn.Linear or "forward" in layer.__dict__:
        return False  # a subclass or somebody's own forward computes something else
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= size


def _fits(layers: list[nn.Linear]) -> bool:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return False
    return 4 * sum(layer.weight.numel() for layer in layers) <= _MEMORY_SHARE * free


def _version(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _packed_forward(layer: nn.Linear) -> Any:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    multiply = torch.ops.mkldnn._linear_pointwise

    def forward(input: Tensor) -> Tensor:
        bias = layer.bias
        result: Tensor = multiply(input, weight, bias, "none", [], "")
        return result

    return forward
