"""What the target says about samples, kept for those that come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gkt_plugins.distill.samples import Sample

__all__ = ["HiddenStore"]


class HiddenStore:
    """Last hidden states of a frozen target, of which the least recently used leave when room runs out.

    Nothing is approximated: the target does not change, and a sample's key names its very tokens, so what is kept is
    what would be computed again, up to the rounding that depends on which rows share a forward call. Samples without a
    key, such as a draft's fresh ones, are computed and forgotten. Hidden states, not logits, are kept: they are
    V / H times smaller, and the head is applied chunk by chunk when they are used.
    """

    def __init__(self, compute: Callable[[Sequence[Sample]], Tensor], *, max_bytes: int = 2**30) -> None:
        """
        :param compute: [n, H] states of samples, in their order, one for each token of an answer: what predicts it.
        :param max_bytes: of what is kept, on the device of the states; 0 keeps nothing.
        """
        self._compute = compute
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self.bytes = 0
        """Of what is kept now."""
        self.found = 0
        """Samples that needed no forward call."""

    def states(self, samples: Sequence[Sample]) -> Tensor:
        """[n, H] as ``compute`` gives them, which is asked for the missing ones alone."""
        missing = [sample for sample in samples if sample.key not in self._kept]
        self.found += len(samples) - len(missing)
        computed: Iterator[Tensor] = iter(())
        if missing:
            states = self._compute(missing)
            if not any(sample.key for sample in samples):
                return states
            computed = iter(torch.split(states, [len(sample.answer) for sample in missing]))
        parts = []
        for sample in samples:
            if sample.key in self._kept:
                self._kept.move_to_end(sample.key)
                parts.append(self._kept[sample.key])
            else:
                parts.append(next(computed))
        for sample, part in zip(samples, parts, strict=True):
            if sample.key:
                self._keep(sample.key, part)
        return torch.cat(parts)

    def _keep(self, key: str, states: Tensor) -> None:
        if key in self._kept:
            return
        size = states.numel() * states.element_size()
        if size > self._max_bytes:
            return
        self._kept[key] = states.clone()  # a view would keep the whole batch alive
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.numel() * oldest.element_size()
