"""What the steps of a decode loop cost, as a function of batch size and gamma, from steps that were timed.

Seconds of one step = the target's call over gamma + 1 tokens a row, the drafter's calls, and what lies between them.
Needs no torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from gkt_plugins.evaluation.statistics import Estimate, median_estimate

__all__ = ["PrefillTime", "StepCosts", "StepTime"]


@dataclass(frozen=True, slots=True)
class StepTime:
    """One timed step."""

    round: int
    """Steps of one round were taken close together, so that a slow moment of the machine meets all of them."""
    batch: int
    gamma: int
    """Tokens that were drafted for each row; 0 is a plain step."""
    target_s: float
    """Inside the target's forward call."""
    draft_s: float
    """Inside the drafter."""
    rest_s: float
    """Verification and bookkeeping."""
    behind: bool = False
    """The draft began with two tokens, because a row had kept its whole last block."""
    drafting_steady: bool = True
    """False: the drafter had to catch up, so that ``draft_s`` is no block's ordinary cost."""

    @property
    def seconds(self) -> float:
        return self.target_s + self.draft_s + self.rest_s


@dataclass(frozen=True, slots=True)
class PrefillTime:
    """One entry of new rows: the target reads them, then the drafter."""

    tokens: int
    """Of all that entered."""
    target_s: float
    drafting: StepTime
    """The step after it: its ``draft_s`` holds the drafter's own reading beside the block's drafts."""


@dataclass(frozen=True)
class StepCosts:
    """The cost model. Between measured batch sizes and gammas values lie on straight lines."""

    batches: tuple[int, ...]
    """Measured batch sizes, ascending."""
    gammas: tuple[int, ...]
    """Measured gammas, ascending, 0 first."""
    target: Mapping[tuple[int, int], float]
    """(batch, gamma) → seconds of the target's call over gamma + 1 tokens a row: the verify curve."""
    rest: Mapping[tuple[int, int], float]
    """(batch, gamma) → seconds of verification and bookkeeping."""
    draft: Mapping[int, tuple[float, float, float]]
    """batch → seconds of the first draft call with what surrounds it, of each further one, and of the second token of
    the first call."""
    target_read: tuple[float, float]
    """Seconds per entry of new rows, and per prompt token."""
    draft_read: tuple[float, float]
    spread: Mapping[tuple[int, int], Estimate]
    """(batch, gamma) → a block's seconds in plain steps of its round, with the interval of its median."""

    @classmethod
    def fit(cls, steps: Sequence[StepTime], prefills: Sequence[PrefillTime]) -> StepCosts:
        """Trimmed means of what was measured.

        :raises ValueError: no plain steps at all, or fewer than two rounds.
        """
        plain = {step.batch for step in steps if step.gamma == 0}
        if not plain or len({step.round for step in steps}) < 2:
            raise ValueError("a cost model needs plain steps, and at least two rounds of them")
        batches = tuple(sorted(plain))
        # A gamma counts as measured only where every batch size has it, so that the grid has no holes.
        seen: dict[int, set[int]] = defaultdict(set)
        for step in steps:
            seen[step.gamma].add(step.batch)
        gammas = tuple(sorted(gamma for gamma, sizes in seen.items() if sizes >= plain))
        grid = [step for step in steps if step.batch in plain and step.gamma in gammas]
        draft = {batch: _draft_line([step for step in grid if step.batch == batch]) for batch in batches}
        return cls(
            batches,
            gammas,
            _middles(grid, lambda step: step.target_s),
            _middles(grid, lambda step: step.rest_s),
            draft,
            _line((entry.tokens, entry.target_s) for entry in prefills),
            _line((entry.tokens, _catching_up(entry.drafting, draft)) for entry in prefills),
            _spread(grid),
        )

    # ----------------------------------------------------------------------------------------------- what replay asks

    def block(self, batch: int, gamma: int, *, behind: bool) -> float:
        """See :class:`gkt_plugins.speculation.replay.BlockCosts`."""
        return self.verify(batch, gamma) + self._at(self.rest, batch, gamma) + self.drafting(batch, gamma, behind)

    def prefill(self, tokens: int) -> float:
        return self.target_read[0] + self.target_read[1] * tokens

    def draft_prefill(self, tokens: int) -> float:
        return self.draft_read[0] + self.draft_read[1] * tokens

    # ----------------------------------------------------------------------------------------------- what people read

    def verify(self, batch: int, gamma: int) -> float:
        """Seconds of the target's call that verifies ``gamma`` drafted tokens a row; gamma 0 is a plain step's."""
        return self._at(self.target, batch, gamma)

    def drafting(self, batch: int, gamma: int, behind: bool) -> float:
        """Seconds of drafting one block."""
        if gamma == 0:
            return 0.0
        first, further, second_token = self._between(self.draft, batch)
        return first + further * (gamma - 1) + second_token * behind

    def cost_ratio(self, batch: int) -> float:
        """c: one draft step's time divided by one plain target call's, with the calls of both alone."""
        return self._between(self.draft, batch)[1] / self.verify(batch, 0)

    def relative_spread(self, batch: int, gamma: int) -> tuple[float, float]:
        """How far below and above its estimate a block's cost may lie, as factors (<= 1, >= 1)."""
        key = min(self.spread, key=lambda k: (abs(k[0] - batch), abs(k[1] - gamma)))
        estimate = self.spread[key]
        return estimate.low / estimate.value, estimate.high / estimate.value

    def _at(self, table: Mapping[tuple[int, int], float], batch: int, gamma: int) -> float:
        below, above, share = _bracket(self.gammas, gamma)
        values = {
            size: (1 - share) * table[size, below] + share * table[size, above] for size in _ends(self.batches, batch)
        }
        return _mix(self.batches, batch, values)

    def _between(self, table: Mapping[int, tuple[float, float, float]], batch: int) -> tuple[float, float, float]:
        first, further, second = (
            _mix(self.batches, batch, {size: table[size][i] for size in _ends(self.batches, batch)}) for i in range(3)
        )
        return first, further, second


def _bracket(known: Sequence[int], wanted: int) -> tuple[int, int, float]:
    """The known values around ``wanted``, and how far it lies between them; the ends hold beyond the ends."""
    if wanted <= known[0]:
        return known[0], known[0], 0.0
    if wanted >= known[-1]:
        return known[-1], known[-1], 0.0
    index = bisect_right(known, wanted) - 1
    below, above = known[index], known[index + 1]
    return below, above, (wanted - below) / (above - below)


def _ends(known: Sequence[int], wanted: int) -> set[int]:
    return set(_bracket(known, wanted)[:2])


def _mix(known: Sequence[int], wanted: int, values: Mapping[int, float]) -> float:
    below, above, share = _bracket(known, wanted)
    return (1 - share) * values[below] + share * values[above]


def _middles(steps: Iterable[StepTime], value: Callable[[StepTime], float]) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    for step in steps:
        found[step.batch, step.gamma].append(value(step))
    return {key: _middle(values) for key, values in found.items()}


def _middle(values: Sequence[float]) -> float:
    """Mean without the fifth that is lowest and the fifth that is highest: it shrugs off a slow moment as a median
    does, and unlike medians such means add up where other programs take turns on the core."""
    cut = len(values) // 5
    return fmean(sorted(values)[cut : len(values) - cut])


def _draft_line(steps: Sequence[StepTime]) -> tuple[float, float, float]:
    """Least squares over the middles of each gamma, with and without a second token in the first call."""
    found: dict[tuple[int, bool], list[float]] = defaultdict(list)
    for step in steps:
        if step.gamma and step.drafting_steady:
            found[step.gamma, step.behind].append(step.draft_s)
    if not found:
        return 0.0, 0.0, 0.0
    weights = np.sqrt([len(values) for values in found.values()])
    columns = np.array([[1.0, gamma - 1.0, float(behind)] for gamma, behind in found])
    values = np.array([_middle(values) for values in found.values()])
    first, further, second = np.linalg.lstsq(columns * weights[:, None], values * weights, rcond=None)[0]
    if len({gamma for gamma, _ in found}) == 1:  # one gamma alone cannot tell the first call from the others
        gamma = next(iter(found))[0]
        further = first = float(values.mean()) / gamma
    return max(float(first), 0.0), max(float(further), 0.0), max(float(second), 0.0)


def _catching_up(step: StepTime, draft: Mapping[int, tuple[float, float, float]]) -> float:
    """What ``step`` drafted longer than an ordinary block; a size not measured is compared with the nearest."""
    first, further, _ = draft[min(draft, key=lambda batch: abs(batch - step.batch))]
    return step.draft_s - (first + further * (step.gamma - 1) if step.gamma else 0.0)


def _line(points: Iterable[tuple[int, float]]) -> tuple[float, float]:
    """Constant and slope, neither below 0, of seconds over tokens, by least squares of relative errors."""
    known = [(tokens, max(seconds, 0.0)) for tokens, seconds in points if tokens > 0]
    if not known:
        return 0.0, 0.0
    tokens = np.array([point[0] for point in known], dtype=float)
    seconds = np.array([point[1] for point in known])
    slope = float(np.median(seconds / tokens))
    if len(set(tokens)) < 2:
        return 0.0, slope
    columns = np.stack([np.ones_like(tokens), tokens], axis=1) / tokens[:, None]
    constant, per_token = (float(x) for x in np.linalg.lstsq(columns, seconds / tokens, rcond=None)[0])
    if per_token <= 0:
        return float(np.median(seconds)), 0.0
    return (constant, per_token) if constant >= 0 else (0.0, slope)


def _spread(steps: Sequence[StepTime]) -> dict[tuple[int, int], Estimate]:
    plain: dict[tuple[int, int], list[float]] = defaultdict(list)
    for step in steps:
        if step.gamma == 0:
            plain[step.round, step.batch].append(step.seconds)
    ratios: dict[tuple[int, int], list[float]] = defaultdict(list)
    for step in steps:
        if step.gamma and step.drafting_steady and (step.round, step.batch) in plain:
            ratios[step.batch, step.gamma].append(step.seconds / median(plain[step.round, step.batch]))
    return {key: median_estimate(values) for key, values in ratios.items() if len(values) > 1}
