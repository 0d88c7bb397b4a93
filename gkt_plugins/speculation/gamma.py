"""How many tokens to draft: fixed, or following what blocks cost and what acceptance brings, per batch size."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median_low
from typing import Protocol

__all__ = ["FixedGamma", "GammaController", "GammaPolicy"]

_WARM_UP = 2
"""Timed blocks before a cost is trusted: the first of its shape also pays for allocations."""
_WINDOW = 7
"""Recent blocks that a cost is the median of."""
_PRIOR_ACCEPTANCE, _PRIOR_WEIGHT = 0.7, 4.0
_DECAY = 0.998
"""Weight of older blocks in the acceptance, per observed block."""
_MARGIN = 1.02
"""Speculation must promise this much more than plain decoding, or it stays off."""
_CHECK_PLAIN = 48
"""Blocks of speculation between two plain steps, which cost little and keep the comparison fresh."""
_FIRST_PROBE, _LAST_PROBE = 48, 768
"""Plain steps between two probes while speculation is off; each probe that fails doubles the pause."""
_PROBE_BLOCKS = 2
"""Blocks of a probe; the first lets the drafter catch up and is not timed."""


class GammaPolicy(Protocol):
    """Says how many tokens the next block drafts, and is told how it went."""

    def choose(self, batch: int) -> int:
        """Draft tokens for a block of ``batch`` rows; 0 is a plain step."""
        ...

    def observe(self, batch: int, gamma: int, seconds: float, drafted: Sequence[int], accepted: Sequence[int], *,
                steady: bool) -> None:  # fmt: skip
        """One block took ``seconds``. ``drafted`` and ``accepted``: [B]. ``steady``: no row was new to the drafter."""
        ...


class FixedGamma:
    """Always the same."""

    def __init__(self, gamma: int) -> None:
        if gamma < 1:
            raise ValueError(f"gamma must be at least 1, got {gamma!r}; leave the drafter out to decode plainly")
        self._gamma = gamma

    def choose(self, batch: int) -> int:
        return self._gamma

    def observe(self, batch: int, gamma: int, seconds: float, drafted: Sequence[int], accepted: Sequence[int], *,
                steady: bool) -> None:  # fmt: skip
        pass


class _Size:
    """What is known about one batch size."""

    def __init__(self) -> None:
        self.times: dict[int, deque[float]] = {}
        self.since_plain = 0
        self.since_probe = 0
        self.pause = _FIRST_PROBE
        self.probing: tuple[int, int] | None = None
        """gamma, and blocks left."""

    def cost(self, gamma: int) -> float | None:
        times = self.times.get(gamma, ())
        return median_low(times) if len(times) >= _WARM_UP else None


class GammaController:
    """``gamma = "auto"``: the gamma of most expected tokens per second, measured while decoding; 0 where none pays.

    The time of a block is measured per batch size and gamma, whole: draft, verification and what lies between. The
    acceptance of each draft position is measured over all rows. May be shared by successive loops over the same
    models, so that nothing is learned twice.
    """

    def __init__(self, options: Sequence[int] = (1, 2, 3, 4, 5, 6, 8)) -> None:
        """``options``: the gammas to choose from, each at least 1."""
        if not options or min(options) < 1:
            raise ValueError(f"expected gammas of at least 1 to choose from, got {list(options)}")
        self.options = tuple(sorted(set(options)))
        self._sizes: dict[int, _Size] = {}
        self._tested = [0.0] * self.options[-1]
        self._passed = [0.0] * self.options[-1]

    def choose(self, batch: int) -> int:
        size = self._sizes.setdefault(batch, _Size())
        if size.probing is not None:
            gamma, left = size.probing
            size.probing = (gamma, left - 1) if left > 1 else None
            return gamma
        if self._reference(batch) is None:
            return 0  # nothing is known yet: plain steps are what everything is compared with
        best = max(self.options, key=lambda gamma: self.expected_speedup(batch, gamma))
        if self.expected_speedup(batch, best) < _MARGIN:
            size.since_plain = 0
            size.since_probe += 1
            if size.since_probe < size.pause:
                return 0
            size.since_probe, size.pause = 0, min(2 * size.pause, _LAST_PROBE)
            size.probing = best, _PROBE_BLOCKS - 1
            return best
        size.since_probe, size.pause = 0, _FIRST_PROBE
        size.since_plain += 1
        if size.since_plain >= _CHECK_PLAIN:
            size.since_plain = 0
            return 0
        return best

    def observe(self, batch: int, gamma: int, seconds: float, drafted: Sequence[int], accepted: Sequence[int], *,
                steady: bool) -> None:  # fmt: skip
        if steady or gamma == 0:
            times = self._sizes.setdefault(batch, _Size()).times
            times.setdefault(gamma, deque(maxlen=_WINDOW)).append(seconds)
        if gamma:
            self._tested = [value * _DECAY for value in self._tested]
            self._passed = [value * _DECAY for value in self._passed]
            for n, kept in zip(drafted, accepted, strict=True):
                for i in range(min(kept + 1, n, len(self._tested))):
                    self._tested[i] += 1.0
                    self._passed[i] += i < kept

    def expected_tokens(self, gamma: int) -> float:
        """Tokens that a block of ``gamma`` drafts yields per row, from the acceptance measured at each position."""
        expected, reach, rate, weight = 1.0, 1.0, _PRIOR_ACCEPTANCE, _PRIOR_WEIGHT
        for tested, passed in zip(self._tested[:gamma], self._passed[:gamma], strict=True):
            rate = (passed + weight * rate) / (tested + weight)  # a position rarely reached leans on the one before
            weight = 2 * _PRIOR_WEIGHT
            reach *= rate
            expected += reach
        return expected

    def expected_speedup(self, batch: int, gamma: int) -> float:
        """Tokens per second against plain decoding, at this batch size."""
        return self.expected_tokens(gamma) / self._relative_cost(batch, gamma)

    def _reference(self, batch: int) -> int | None:
        """The batch size whose measurements serve for ``batch``: itself, else the nearest that has a plain cost."""
        known = [b for b, size in self._sizes.items() if size.cost(0) is not None]
        return min(known, key=lambda b: (abs(b - batch), -b)) if known else None

    def _relative_cost(self, batch: int, gamma: int) -> float:
        """Time of a block in plain steps; between measured gammas, and beyond them, on a straight line."""
        reference = self._reference(batch)
        size = self._sizes[batch if reference is None else reference]
        plain = size.cost(0)
        if plain is None:
            return 1.0
        exact = size.cost(gamma)
        if exact is not None:
            return exact / plain
        known = {0: 1.0}
        for option in self.options:
            cost = size.cost(option)
            if cost is not None:
                known[option] = cost / plain
        if len(known) == 1:
            return 1.0 + 0.15 * gamma  # nothing tried yet: hopeful, so that something is
        below = max(g for g in known if g < gamma)
        above = min((g for g in known if g > gamma), default=None)
        if above is None:
            above, below = below, 0
        slope = (known[above] - known[below]) / (above - below)
        return max(known[below] + slope * (gamma - below), 1.0)
