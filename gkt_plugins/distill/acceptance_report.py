"""What was measured of a draft: figures with intervals over prompts, and the comparison of two drafts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gkt_plugins.evaluation.statistics import Estimate, FloatArray, sums_estimate
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.formulas import block_efficiency

__all__ = ["FEW", "AcceptanceReport", "Comparison", "PromptAcceptance", "compare", "estimate_json"]

FEW = 5
"""Prompts that an interval needs: resampling fewer makes it too narrow."""


@dataclass(frozen=True, slots=True)
class PromptAcceptance:
    """One prompt: what the target's sample says of the draft, and what the decode loop counted."""

    prompt: tuple[int, ...]
    family: str
    tokens: int
    """Answer tokens of the target's sample."""
    overlap: float
    """Sum over them of 1 − total variation."""
    counts: Mapping[int, Counts]
    """gamma → the loop's counters."""
    positions: tuple[tuple[int, int], ...]
    """Per place in a block of the largest gamma: (tested, accepted). Tokens behind an answer's end are in neither."""


@dataclass(frozen=True, slots=True)
class AcceptanceReport:
    """One draft on a set of prompts, at one temperature.

    Intervals are bootstrapped over prompts; with fewer than five they span all that is possible, since so few say
    nothing of the others.
    """

    temperature: float
    gammas: tuple[int, ...]
    prompts: tuple[PromptAcceptance, ...]

    @property
    def tokens(self) -> int:
        """Answer tokens on which target and draft were compared."""
        return sum(prompt.tokens for prompt in self.prompts)

    @property
    def acceptance_tv(self) -> Estimate:
        """1 − mean total variation on the target's own samples, in [0, 1]; at temperature 0, greedy agreement."""
        return self._ratio(lambda prompt: (prompt.overlap, prompt.tokens), (0.0, 1.0))

    def block_efficiency(self, gamma: int) -> Estimate:
        """Tokens emitted per verifying target call, from the loop's counters, in [1, gamma + 1]."""
        return self._ratio(lambda prompt: _emitted(prompt.counts[gamma]), (1.0, gamma + 1.0))

    def predicted_block_efficiency(self, gamma: int) -> Estimate:
        """What ``acceptance_tv`` promises if every drafted token passed with the same chance, in [1, gamma + 1]."""
        alpha = self.acceptance_tv
        value, low, high = (block_efficiency(min(1.0, a), gamma) for a in (alpha.value, alpha.low, alpha.high))
        return Estimate(value, low, high, alpha.n)

    def acceptance_rate(self, gamma: int) -> Estimate:
        """accepted / tested, from the loop's counters, in [0, 1]."""
        return self._ratio(lambda prompt: (prompt.counts[gamma].accepted, prompt.counts[gamma].tested), (0.0, 1.0))

    @property
    def by_position(self) -> tuple[Estimate, ...]:
        """Per place in a block of the largest gamma: accepted / tested, in [0, 1]."""
        return tuple(
            self._ratio(lambda prompt, i=i: prompt.positions[i][::-1], (0.0, 1.0))  # type: ignore[misc]
            for i in range(max(self.gammas))
        )

    @property
    def loop_acceptance(self) -> Estimate:
        """accepted / tested over all places of the largest gamma, in [0, 1].

        Tokens behind an answer's end are left out, which ``acceptance_rate`` counts as not accepted; so this is the
        loop's own estimate of ``acceptance_tv``, short of the bonus tokens, which are never tested.
        """
        return self._ratio(
            lambda prompt: (sum(a for _, a in prompt.positions), sum(t for t, _ in prompt.positions)), (0.0, 1.0)
        )

    @property
    def by_family(self) -> dict[str, AcceptanceReport]:
        """The same of each family's prompts alone; empty where prompts name no family."""
        names = sorted({prompt.family for prompt in self.prompts})
        if names == [""]:
            return {}
        return {
            name: AcceptanceReport(self.temperature, self.gammas, tuple(p for p in self.prompts if p.family == name))
            for name in names
        }

    def counts(self, gamma: int) -> Counts:
        """The loop's counters over all prompts."""
        return sum((prompt.counts[gamma] for prompt in self.prompts), Counts())

    def as_json(self) -> dict[str, Any]:
        """All figures; rates are fractions."""
        return {
            "temperature": self.temperature,
            "prompts": len(self.prompts),
            "tokens": self.tokens,
            "acceptance_tv": estimate_json(self.acceptance_tv),
            "loop_acceptance": estimate_json(self.loop_acceptance),
            "by_gamma": {
                str(gamma): {
                    "block_efficiency": estimate_json(self.block_efficiency(gamma)),
                    "predicted_block_efficiency": estimate_json(self.predicted_block_efficiency(gamma)),
                    "acceptance_rate": estimate_json(self.acceptance_rate(gamma)),
                }
                for gamma in self.gammas
            },
            "by_position": [estimate_json(estimate) for estimate in self.by_position],
            "by_family": {
                name: {
                    "prompts": len(part.prompts),
                    "tokens": part.tokens,
                    "acceptance_tv": estimate_json(part.acceptance_tv),
                    "block_efficiency": {
                        str(gamma): estimate_json(part.block_efficiency(gamma)) for gamma in part.gammas
                    },
                }
                for name, part in self.by_family.items()
            },
        }

    def _ratio(self, pair: Callable[[PromptAcceptance], tuple[float, float]], span: tuple[float, float]) -> Estimate:
        pairs = [pair(prompt) for prompt in self.prompts]
        pairs = [(above, below) for above, below in pairs if below]
        if not pairs:
            return Estimate(float("nan"), *span, 0)
        if len(pairs) < FEW:
            above, below = (sum(column) for column in zip(*pairs, strict=True))
            return Estimate(above / below, *span, len(pairs))
        return sums_estimate(list(zip(*pairs, strict=True)), lambda sums: sums[0] / sums[1])


@dataclass(frozen=True, slots=True)
class Comparison:
    """A second draft against a first, on the same prompts; intervals over pairs."""

    temperature: float
    acceptance_tv: Estimate
    """Difference, second − first, in [-1, 1]; 0 is no difference."""
    block_efficiency: Mapping[int, Estimate]
    """gamma → ratio, second / first; 1 is no difference."""

    def as_json(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "acceptance_tv_difference": estimate_json(self.acceptance_tv),
            "block_efficiency_ratio": {
                str(gamma): estimate_json(estimate) for gamma, estimate in self.block_efficiency.items()
            },
        }


def compare(first: AcceptanceReport, second: AcceptanceReport) -> Comparison:
    """How the draft of ``second`` does against that of ``first``, by a bootstrap over the prompts of both.

    :raises ValueError: other prompts or another temperature, or fewer than five prompts.
    """
    if first.temperature != second.temperature:
        raise ValueError(f"expected one temperature, got {first.temperature} and {second.temperature}")
    if [prompt.prompt for prompt in first.prompts] != [prompt.prompt for prompt in second.prompts]:
        raise ValueError("expected two reports on the same prompts in the same order; measure both on one file")
    pairs = list(zip(first.prompts, second.prompts, strict=True))
    if len(pairs) < FEW:
        raise ValueError(f"a comparison needs at least {FEW} prompts, got {len(pairs)}")
    gammas = [gamma for gamma in first.gammas if gamma in second.gammas]
    return Comparison(
        first.temperature,
        _paired(
            [(a.overlap, a.tokens, b.overlap, b.tokens) for a, b in pairs],
            lambda sums: sums[2] / sums[3] - sums[0] / sums[1],
        ),
        {
            gamma: _paired(
                [(*_emitted(a.counts[gamma]), *_emitted(b.counts[gamma])) for a, b in pairs],
                lambda sums: (sums[2] / sums[3]) / (sums[0] / sums[1]),
            )
            for gamma in gammas
        },
    )


def _paired(
    rows: Sequence[tuple[float, float, float, float]], statistic: Callable[[FloatArray], FloatArray]
) -> Estimate:
    return sums_estimate(list(zip(*(row for row in rows if row[1] or row[3]), strict=True)), statistic)


def _emitted(counts: Counts) -> tuple[float, float]:
    """Tokens and target calls of verified blocks."""
    return counts.accepted + counts.blocks, counts.blocks


def estimate_json(estimate: Estimate) -> dict[str, float | None]:
    """Rounded to four places; a value that nothing was measured for is null."""
    value = round(estimate.value, 4) if estimate.n else None
    return {"value": value, "low": round(estimate.low, 4), "high": round(estimate.high, 4)}
