"""The ``gkt`` object of an answer: who wrote it, what it cost, and what it would have cost from the teacher alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gkt_plugins.accounting.counterfactual import TeacherAlone
from gkt_plugins.accounting.money import format_nano
from gkt_plugins.contracts import PriceSource, UsageRecord
from gkt_plugins.guidance.answers import Answer

__all__ = ["Provenance", "Way", "counterfactual_nano", "is_degraded", "provenance", "way_of"]

Way: TypeAlias = Literal["guided", "teacher", "student", "forwarded"]
"""``guided``: teacher, then student. ``teacher``: it finished the answer. ``forwarded``: the student's engine got the
request untouched."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an answer comes from. None is *unknown*, which is not zero."""

    guidance_tokens: int
    """Teacher tokens in the answer, handed over or, where the teacher finished it, all of them."""
    teacher: str | None
    """The model; None where the pipeline has no teacher."""
    student: str
    way: Way
    degraded: bool = False
    """Something was asked for, or configured, that this answer did without; ``notes`` say what."""
    cached: bool = False
    notes: tuple[str, ...] = ()
    cost_nano: int | None = None
    counterfactual_nano: int | None = None
    """An estimate, always: of the teacher writing all of it."""
    currency: str | None = None
    overhead_ms: float | None = None
    """Time in which no engine was at work on it."""

    def as_json(self) -> dict[str, Any]:
        """The object as responses carry it; amounts are decimal strings, which are exact."""
        return {
            "guidance_tokens": self.guidance_tokens,
            "teacher": self.teacher,
            "student": self.student,
            "route": self.way,
            "degraded": self.degraded,
            "cached": self.cached,
            "notes": list(self.notes),
            "cost": _amount(self.cost_nano),
            "counterfactual_cost": _amount(self.counterfactual_nano),
            "currency": self.currency,
            "overhead_ms": None if self.overhead_ms is None else round(self.overhead_ms, 3),
        }


def provenance(
    answers: Sequence[Answer],
    *,
    teacher: str | None,
    student: str,
    prices: PriceSource | None = None,
    overhead_s: float | None = None,
    notes: Iterable[str] = (),
    degraded: bool = False,
) -> Provenance:
    """What is to be said of ``answers``, the prompts of one request.

    :param prices: for the counterfactual; None leaves it unknown.
    :param notes: come before what the answers say themselves.
    :param degraded: True where something outside the answers, such as a budget, made them so.
    """
    records = [record for answer in answers for record in answer.records]
    said = tuple(dict.fromkeys([*notes, *(n for a in answers for choice in a.choices for n in choice.notes)]))
    currencies = {record.currency for record in records}
    costs = [record.cost_nano for record in records]
    known = len(currencies) == 1 and None not in costs
    return Provenance(
        guidance_tokens=sum(answer.guidance_tokens for answer in answers),
        teacher=teacher,
        student=student,
        way=way_of(answers),
        degraded=degraded or is_degraded(said),
        cached=any(answer.cached for answer in answers),
        notes=said,
        cost_nano=sum(cost or 0 for cost in costs) if known else None,
        counterfactual_nano=None if prices is None else counterfactual_nano(answers, prices),
        currency=next(iter(currencies)) if len(currencies) == 1 else None,
        overhead_ms=None if overhead_s is None else overhead_s * 1000,
    )


def way_of(answers: Sequence[Answer]) -> Way:
    """Who wrote the answers."""
    if not any(answer.guidance for answer in answers):
        return "student"
    return "guided" if any(record.role == "student" for a in answers for record in a.records) else "teacher"


def is_degraded(notes: Iterable[str]) -> bool:
    """Whether one of an answer's notes says so."""
    return any(note.startswith("degraded:") for note in notes)


def counterfactual_nano(answers: Sequence[Answer], prices: PriceSource) -> int | None:
    """What the teacher alone would have cost, estimated; None unless all of ``answers`` can be compared."""
    alone = TeacherAlone(prices, {})
    compared = [answer.records for answer in answers if _has_teacher(answer.records)]
    if len(compared) < len(answers):
        return None
    for records in compared:
        alone.add(records)
    if alone.left_out or len(alone.comparisons) != 1:
        return None
    return alone.comparisons[0].estimate_nano


def _has_teacher(records: Sequence[UsageRecord]) -> bool:
    return any(record.role == "teacher" for record in records)


def _amount(nano: int | None) -> str | None:
    return None if nano is None else format_nano(nano)
