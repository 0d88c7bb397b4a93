"""Does speculation pay? A prediction for every gamma and batch size, from what was measured on the user's machine.

:func:`make_plan` replays measured answers (``replay.py``) over measured step costs (``step_costs.py``) and compares the
time of the same queue decoded plainly. Needs no torch; ``measuring.py`` does the measuring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import exp, gcd, hypot, inf, log
from typing import Any, Literal

from gkt_plugins.evaluation.statistics import Estimate, ratio_estimate
from gkt_plugins.speculation.formulas import block_efficiency
from gkt_plugins.speculation.replay import AnswerTrace, BlockCosts, Replay, decode_seconds, fill
from gkt_plugins.speculation.step_costs import PrefillTime, StepCosts, StepTime

__all__ = [
    "MIN_GAIN",
    "Acceptance",
    "Cell",
    "Decision",
    "Measurement",
    "Plan",
    "break_even_acceptance",
    "make_plan",
]

Decision = Literal["enable", "do not enable"]

MIN_GAIN = 1.05
"""A smaller speed-up is not worth a recommendation: the prediction itself may be wrong by about as much."""
_WAVES = 2
"""Rows of a simulated queue, in batches: enough to refill, few enough that the batch running empty still counts."""
_QUEUES = 8
"""Simulated queues at least, where there are so many answers: rows meet in several ways."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of one pair of models, on one machine, with one set of prompts."""

    traces: tuple[AnswerTrace, ...]
    """At least two answers of the target."""
    steps: tuple[StepTime, ...]
    prefills: tuple[PrefillTime, ...]
    max_new_tokens: int
    """What rows were allowed to write."""
    seconds: float
    """That measuring took."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What drafting brings at one gamma, whatever the batch size."""

    gamma: int
    acceptance_rate: Estimate
    """accepted / tested, in [0, 1]."""
    by_position: tuple[float | None, ...]
    """Of draft position i, given that those before it passed; None where none was tested."""
    block_efficiency: Estimate
    """Tokens per target call, in [1, gamma + 1]."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One gamma at one batch size."""

    batch: int
    gamma: int
    speedup: Estimate
    """Time of plain decoding / time of speculating, same queue; prefill and the batch running empty included."""
    break_even: float | None
    """The acceptance rate at which both take the same time; None where not even 1 would do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and why."""

    cells: tuple[Cell, ...]
    """By batch size, then gamma."""
    acceptance: tuple[Acceptance, ...]
    """By gamma."""
    costs: StepCosts
    answers: int
    unfinished: int
    """Answers that measuring cut off; they count with the tokens they have."""

    @property
    def batches(self) -> list[int]:
        return sorted({cell.batch for cell in self.cells})

    def best(self, batch: int) -> Cell:
        """The cell of greatest predicted speed-up; the smaller gamma of a tie."""
        return max((cell for cell in self.cells if cell.batch == batch), key=lambda cell: cell.speedup.value)

    def cell(self, batch: int, gamma: int) -> Cell:
        """:raises KeyError: it was not asked for."""
        for cell in self.cells:
            if (cell.batch, cell.gamma) == (batch, gamma):
                return cell
        raise KeyError((batch, gamma))

    def pays(self, batch: int) -> bool:
        """Is the gain at this batch size larger than what the prediction may be wrong by?"""
        speedup = self.best(batch).speedup
        return speedup.value >= MIN_GAIN and speedup.low > 1.0

    @property
    def decision(self) -> Decision:
        """``enable`` when it pays at one of the batch sizes at least; :attr:`reason` names those where it does not."""
        return "enable" if any(map(self.pays, self.batches)) else "do not enable"

    @property
    def reason(self) -> str:
        """One sentence."""
        paying = [batch for batch in self.batches if self.pays(batch)]
        if not paying:
            return self._why_not(max((self.best(batch) for batch in self.batches), key=lambda c: c.speedup.value))
        gains = "; ".join(
            f"batch {cell.batch}: gamma {cell.gamma} is {_times(cell.speedup)} as fast"
            for cell in map(self.best, paying)
        )
        others = [str(batch) for batch in self.batches if batch not in paying]
        if not others:
            return gains
        return f'{gains}; it does not pay at batch {", ".join(others)}, where gamma = "auto" switches it off'

    def _why_not(self, best: Cell) -> str:
        measured = self.acceptance[best.gamma - 1].acceptance_rate.value
        cost = self.costs.cost_ratio(best.batch)
        needs = (
            "and no acceptance would make up for it"
            if best.break_even is None
            else f"and acceptance is {measured:.2f} where {best.break_even:.2f} only breaks even"
        )
        return (
            f"the best cell, batch {best.batch} with gamma {best.gamma}, is {_times(best.speedup)} as fast as plain "
            f"decoding where {MIN_GAIN:g} is asked for: a draft step takes {cost:.2f} of a target step, {needs}"
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON would have it."""
        costs = self.costs
        return {
            "decision": self.decision,
            "reason": self.reason,
            "best": {str(batch): asdict(self.best(batch)) for batch in self.batches},
            "cells": [asdict(cell) for cell in self.cells],
            "acceptance": [asdict(acceptance) for acceptance in self.acceptance],
            "cost_ratio": {str(batch): costs.cost_ratio(batch) for batch in self.batches},
            "plain_step_s": {str(batch): costs.block(batch, 0, behind=False) for batch in self.batches},
            "verify_in_plain_calls": {
                str(batch): {
                    str(gamma): costs.verify(batch, gamma) / costs.verify(batch, 0)
                    for gamma in range(1, len(self.acceptance) + 1)
                }
                for batch in self.batches
            },
            "answers": self.answers,
            "unfinished_answers": self.unfinished,
        }


def break_even_acceptance(tokens_per_call: float, gamma: int) -> float | None:
    """The acceptance rate at which blocks of ``gamma`` drafts yield ``tokens_per_call``; None: not even 1 suffices.

    The same chance is taken for every draft position, as in the closed forms.
    """
    if tokens_per_call > gamma + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if block_efficiency(middle, gamma) < tokens_per_call:
            low = middle
        else:
            high = middle
    return high if high > 1e-9 else 0.0


def make_plan(measured: Measurement, *, batches: Sequence[int], gamma_max: int, rows: int | None = None) -> Plan:
    """Predict every gamma up to ``gamma_max`` at every batch size.

    :param rows: length of the queue that a batch size works through; by default twice the batch, so that finished rows
        are replaced and the batch runs empty at the end.
    :raises ValueError: fewer than two answers or rounds of steps, or no batch size or gamma asked for.
    """
    if not batches or min(batches) < 1 or gamma_max < 1:
        raise ValueError(f"expected batch sizes and a gamma of at least 1, got {list(batches)} and {gamma_max}")
    costs = StepCosts.fit(measured.steps, measured.prefills)
    answers = [
        Replay(trace.prompt_tokens, passed, limit=measured.max_new_tokens)
        for trace, passed in zip(measured.traces, fill(measured.traces), strict=True)
        if passed
    ]
    acceptance = tuple(_acceptance(answers, gamma) for gamma in range(1, gamma_max + 1))
    cells = []
    for batch in sorted(set(batches)):
        queue = rows or _WAVES * batch
        plain = _seconds(answers, queue, batch, 0, costs)
        reading = sum(_seconds(answers, queue, batch, 1, _Reading(costs)))
        for gamma in range(1, gamma_max + 1):
            speculating = _seconds(answers, queue, batch, gamma, costs)
            speedup = _widened(ratio_estimate(plain, speculating), *costs.relative_spread(batch, gamma))
            decoding = sum(plain) - reading  # what is left for blocks, if both are to take the same time
            rate = acceptance[gamma - 1].acceptance_rate.value
            needed = block_efficiency(rate, gamma) * (sum(speculating) - reading) / decoding if decoding > 0 else inf
            cells.append(Cell(batch, gamma, speedup, break_even_acceptance(needed, gamma)))
    unfinished = sum(not trace.finished for trace in measured.traces)
    return Plan(tuple(cells), acceptance, costs, len(answers), unfinished)


class _Reading:
    """Costs of prompts alone."""

    def __init__(self, costs: BlockCosts) -> None:
        self.prefill = costs.prefill
        self.draft_prefill = costs.draft_prefill

    def block(self, batch: int, gamma: int, *, behind: bool) -> float:
        return 0.0


class _Remembered:
    """Step costs, each looked up once: a simulation asks for the same few over and over."""

    def __init__(self, costs: BlockCosts) -> None:
        self._block = lru_cache(maxsize=None)(costs.block)
        self.prefill = costs.prefill
        self.draft_prefill = costs.draft_prefill

    def block(self, batch: int, gamma: int, *, behind: bool) -> float:
        return self._block(batch, gamma, behind=behind)


def _seconds(answers: Sequence[Replay], queue: int, batch: int, gamma: int, costs: BlockCosts) -> list[float]:
    """Per answer, its share of the time of queues that begin at different answers and meet all equally often."""
    total = [0.0] * len(answers)
    remembered = _Remembered(costs)
    common = gcd(len(answers), queue)  # queues that begin so far apart, or a divisor of it, meet all equally often
    stride = max(n for n in range(1, common + 1) if common % n == 0 and (n == 1 or len(answers) // n >= _QUEUES))
    for first in range(0, len(answers), stride):
        places = [(first + i) % len(answers) for i in range(queue)]
        shares = decode_seconds([answers[place] for place in places], batch=batch, gamma=gamma, costs=remembered)
        for place, share in zip(places, shares, strict=True):
            total[place] += share
    return total


def _acceptance(answers: Sequence[Replay], gamma: int) -> Acceptance:
    counts = [answer.counts(gamma) for answer in answers]
    tested = [float(sum(t for t, _ in answer)) for answer in counts]
    accepted = [float(sum(a for _, a in answer)) for answer in counts]
    by_position: list[float | None] = []
    for position in range(gamma):
        reached = sum(answer[position][0] for answer in counts)
        by_position.append(sum(answer[position][1] for answer in counts) / reached if reached else None)
    if not sum(tested):
        raise ValueError("no answer has a second token, so nothing can be drafted; give prompts with longer answers")
    return Acceptance(
        gamma,
        ratio_estimate(accepted, tested),
        tuple(by_position),
        ratio_estimate(
            [answer.tokens - 1.0 for answer in answers], [float(answer.blocks(gamma)) for answer in answers]
        ),
    )


def _widened(estimate: Estimate, low_factor: float, high_factor: float) -> Estimate:
    """``estimate`` with the independent uncertainty of a divisor added: half-widths in logarithms, in quadrature."""
    below = hypot(log(estimate.value / estimate.low), log(high_factor))
    above = hypot(log(estimate.high / estimate.value), log(low_factor))
    return Estimate(estimate.value, estimate.value * exp(-below), estimate.value * exp(above), estimate.n)


def _times(speedup: Estimate) -> str:
    return f"{speedup.value:.2f} times ({speedup.low:.2f}–{speedup.high:.2f})"
