"""Adds a ledger up: by pipeline, model, role or day. What is unknown is counted beside what is known, never as zero."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from itertools import groupby
from typing import Any, Literal, TypeAlias

from gkt_plugins.accounting.counterfactual import TeacherAlone
from gkt_plugins.accounting.money import format_nano, nanoseconds
from gkt_plugins.contracts import PriceSource, UsageRecord

__all__ = ["DIMENSIONS", "Dimension", "Group", "Report", "Tally", "build_report"]

Dimension: TypeAlias = Literal["pipeline", "model", "role", "day"]

DIMENSIONS: tuple[Dimension, ...] = ("pipeline", "model", "role", "day")


@dataclass(slots=True)
class Tally:
    """A sum that says how much it does not know."""

    known: int = 0
    known_calls: int = 0
    unknown_calls: int = 0

    def add(self, amount: int | None) -> None:
        if amount is None:
            self.unknown_calls += 1
        else:
            self.known += amount
            self.known_calls += 1

    def as_json(self) -> dict[str, int | None]:
        """``known`` is null where no call's amount is known."""
        return {"known": self.known if self.known_calls else None, "unknown_calls": self.unknown_calls}


@dataclass(slots=True)
class Group:
    """The calls that have ``key`` in common, one value per dimension."""

    key: tuple[str, ...]
    calls: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    estimated_calls: int = 0
    prompt_tokens: Tally = field(default_factory=Tally)
    cached_tokens: Tally = field(default_factory=Tally)
    completion_tokens: Tally = field(default_factory=Tally)
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    duration_ns: Tally = field(default_factory=Tally)
    cost_nano: dict[str, int] = field(default_factory=dict)
    """Currency → what the calls of known cost add up to; currencies are never added together."""
    unknown_cost_calls: int = 0

    def add(self, record: UsageRecord) -> None:
        usage = record.usage
        self.calls += 1
        self.statuses[record.status] += 1
        self.estimated_calls += usage.estimated
        self.prompt_tokens.add(usage.prompt_tokens)
        self.cached_tokens.add(usage.cached_tokens)
        self.completion_tokens.add(usage.completion_tokens)
        self.drafted_tokens += usage.drafted_tokens
        self.accepted_tokens += usage.accepted_tokens
        self.duration_ns.add(None if usage.seconds is None else nanoseconds(usage.seconds))
        if record.cost_nano is None:
            self.unknown_cost_calls += 1
        else:
            self.cost_nano[record.currency] = self.cost_nano.get(record.currency, 0) + record.cost_nano

    def as_json(self, by: Sequence[Dimension]) -> dict[str, Any]:
        return {
            **dict(zip(by, self.key, strict=True)),
            "calls": self.calls,
            "statuses": dict(sorted(self.statuses.items())),
            "estimated_calls": self.estimated_calls,
            "prompt_tokens": self.prompt_tokens.as_json(),
            "cached_tokens": self.cached_tokens.as_json(),
            "completion_tokens": self.completion_tokens.as_json(),
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "duration_ns": self.duration_ns.as_json(),
            "cost": {currency: format_nano(nano) for currency, nano in sorted(self.cost_nano.items())},
            "unknown_cost_calls": self.unknown_cost_calls,
        }


@dataclass(slots=True)
class Report:
    """What a ledger adds up to."""

    by: tuple[Dimension, ...]
    groups: list[Group]
    """In the order of their keys."""
    total: Group
    teacher_alone: TeacherAlone
    """What the same answers would have cost from the teacher alone: an estimate."""

    def as_json(self) -> dict[str, Any]:
        return {
            "by": list(self.by),
            "groups": [group.as_json(self.by) for group in self.groups],
            "total": self.total.as_json(()),
            "teacher_alone": self.teacher_alone.as_json(),
        }


def build_report(
    records: Iterable[UsageRecord],
    by: Sequence[Dimension],
    *,
    prices: PriceSource | None = None,
    token_ratios: Mapping[tuple[str, str], Fraction] | None = None,
) -> Report:
    """Add ``records`` up.

    :param records: as a ledger gives them: the calls of one request side by side.
    :param by: what to tell apart; none gives one group.
    :param prices: what the teacher would be paid today, for the estimate.
    :param token_ratios: (teacher model, student model) → teacher tokens per student token of the same text.
    """
    groups: dict[tuple[str, ...], Group] = {}
    total = Group(())
    teacher_alone = TeacherAlone(prices, token_ratios or {})
    for _, request in groupby(records, key=lambda record: record.request_id):
        calls = list(request)
        for record in calls:
            key = tuple(_value(record, dimension) for dimension in by)
            groups.setdefault(key, Group(key)).add(record)
            total.add(record)
        teacher_alone.add(calls)
    return Report(tuple(by), [groups[key] for key in sorted(groups)], total, teacher_alone)


def _value(record: UsageRecord, dimension: Dimension) -> str:
    if dimension == "day":
        return datetime.fromtimestamp(record.started_at, UTC).date().isoformat()
    return str(getattr(record, dimension))
