"""What the same answers would have cost from the teacher alone: an estimate, with its assumptions.

Per request: the teacher's input, plus (g + r × student tokens) at the teacher's output price. g: the teacher tokens of
the guidance; r: teacher tokens per student token of the same text, measured per pair of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from gkt_plugins.accounting.money import format_nano
from gkt_plugins.accounting.prices import cost_nano
from gkt_plugins.contracts import AHEAD, PriceSource, Usage, UsageRecord

__all__ = ["ASSUMPTIONS", "Comparison", "TeacherAlone", "token_ratio"]

ASSUMPTIONS = (
    "the teacher alone would have written an answer of the same length",
    "teacher prices are today's, not those of the day of the call",
    "guidance tokens that the seam cut off are counted as part of the answer",
)


@dataclass(slots=True)
class Comparison:
    """Requests of one pipeline and teacher for which both sides are known."""

    pipeline: str
    teacher: str
    currency: str
    requests: int = 0
    actual_nano: int = 0
    estimate_nano: int = 0
    token_ratios: dict[str, tuple[Fraction, bool]] = field(default_factory=dict)
    """Student model → (ratio, True when it was measured; otherwise it is 1 by assumption)."""

    @property
    def saving(self) -> float | None:
        """Fraction of the estimate that was not spent; negative where guidance was dearer, None where it is zero."""
        return None if self.estimate_nano == 0 else float(1 - Fraction(self.actual_nano, self.estimate_nano))

    def as_json(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "teacher": self.teacher,
            "currency": self.currency,
            "requests": self.requests,
            "actual": format_nano(self.actual_nano),
            "estimate": format_nano(self.estimate_nano),
            "saving": self.saving,
            "token_ratios": {
                student: {"ratio": float(ratio), "measured": measured}
                for student, (ratio, measured) in sorted(self.token_ratios.items())
            },
        }


class TeacherAlone:
    """Collects the estimate, request by request. A request that cannot be compared is left out, with its reason."""

    def __init__(self, prices: PriceSource | None, token_ratios: Mapping[tuple[str, str], Fraction]) -> None:
        self._prices = prices
        self._token_ratios = token_ratios
        self._comparisons: dict[tuple[str, str, str], Comparison] = {}
        self._left_out: Counter[tuple[str, str]] = Counter()
        self._guided: set[str] = set()

    @property
    def comparisons(self) -> list[Comparison]:
        """By pipeline, teacher and currency."""
        return [self._comparisons[key] for key in sorted(self._comparisons)]

    @property
    def left_out(self) -> list[tuple[str, str, int]]:
        """(pipeline, reason, requests), of pipelines that have a teacher."""
        return sorted((pipeline, why, n) for (pipeline, why), n in self._left_out.items() if pipeline in self._guided)

    def as_json(self) -> dict[str, Any]:
        return {
            "estimate": True,
            "assumptions": list(ASSUMPTIONS),
            "comparisons": [comparison.as_json() for comparison in self.comparisons],
            "left_out": [{"pipeline": p, "reason": why, "requests": n} for p, why, n in self.left_out],
        }

    def add(self, calls: Sequence[UsageRecord]) -> None:
        """Account for one request, given all its calls and attempts."""
        pipeline = calls[0].pipeline
        last = list({(record.role, record.call): record for record in sorted(calls, key=_attempt)}.values())
        teachers = [record for record in last if record.role == "teacher"]
        students = [record for record in last if record.role == "student"]
        if teachers:
            self._guided.add(pipeline)
        reason = self._compare(pipeline, calls, teachers, students)
        if reason is not None:
            self._left_out[pipeline, reason] += 1

    def _compare(
        self,
        pipeline: str,
        calls: Sequence[UsageRecord],
        teachers: Sequence[UsageRecord],
        students: Sequence[UsageRecord],
    ) -> str | None:
        """Add the request to its comparison, or return why it cannot be compared."""
        if not teachers:
            return "no teacher call"
        if any(record.status != "final" for record in (*teachers, *students)):
            return "not finished"
        models = {record.model for record in teachers}
        if len(models) > 1:
            return "several teachers"
        [teacher] = models
        price = self._prices.price(teacher) if self._prices is not None else None
        if price is None or price.output_nano is None:
            return "no price per token known for the teacher"
        if any(record.cost_nano is None for record in calls):
            return "cost unknown"
        if {record.currency for record in calls if record.cost_nano} - {price.currency}:  # nothing has no currency
            return "several currencies"
        ratios = {record.model: self._ratio(teacher, record.model) for record in students}
        estimates = [cost_nano(usage, price) for usage in _alone(teachers, students, ratios)]
        if None in estimates:
            return "tokens unknown"
        key = (pipeline, teacher, price.currency)
        comparison = self._comparisons.setdefault(key, Comparison(*key))
        comparison.actual_nano += sum(record.cost_nano or 0 for record in calls)  # none is None: checked above
        if pipeline.endswith(AHEAD):  # spent for answers that are counted when they are given
            return None
        comparison.requests += 1
        comparison.estimate_nano += sum(estimate or 0 for estimate in estimates)
        comparison.token_ratios |= ratios
        return None

    def _ratio(self, teacher: str, student: str) -> tuple[Fraction, bool]:
        measured = self._token_ratios.get((teacher, student))
        return (Fraction(1), False) if measured is None else (measured, True)


def token_ratio(
    texts: Iterable[str], teacher_tokens: Callable[[str], int], student_tokens: Callable[[str], int]
) -> Fraction:
    """r of a pair of models: teacher tokens per student token of the same answers, which must not all be empty."""
    teacher, student = 0, 0
    for text in texts:
        teacher += teacher_tokens(text)
        student += student_tokens(text)
    if student == 0:
        raise ValueError("the token ratio needs at least one student token, got texts without any")
    return Fraction(teacher, student)


def _attempt(record: UsageRecord) -> int:
    return record.attempt


def _alone(
    teachers: Sequence[UsageRecord],
    students: Sequence[UsageRecord],
    ratios: Mapping[str, tuple[Fraction, bool]],
) -> list[Usage]:
    """The teacher's calls as they would have been. Choices that share one guidance would each have begun with it."""
    choices = max(1, len(students)) if len(teachers) == 1 else 1
    tail = sum((ratios[record.model][0] * (record.usage.completion_tokens or 0) for record in students), Fraction(0))
    alone = []
    for position, record in enumerate(teachers):
        usage, written = record.usage, record.usage.completion_tokens
        if written is not None:
            written = written * choices + (round(tail) if position == 0 else 0)
        if any(record.usage.completion_tokens is None for record in students):
            written = None
        alone.append(Usage(usage.prompt_tokens, usage.cached_tokens, written, seconds=None, estimated=True))
    return alone
