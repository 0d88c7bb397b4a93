"""What became of a batch so far: counts, and the money that this run has cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from gkt_plugins.accounting.money import divide_half_even, format_nano
from gkt_plugins.batch.outcomes import Outcome
from gkt_plugins.contracts import UsageRecord

__all__ = ["Summary"]

_SHOWN = 100_000
"""Nano-units of the last digit that a running figure shows; the report at the end has them all."""


@dataclass
class Summary:
    """Of one run; lines that an earlier run answered cost it nothing."""

    lines: int
    """Of the input, blank ones left out."""
    kept: int = 0
    """Answered by an earlier run."""
    answered: int = 0
    guided: int = 0
    degraded: int = 0
    cached: int = 0
    wall_s: float = 0.0
    failures: list[tuple[int, str | None, str]] = field(default_factory=list)
    """Line number, custom id and reason of every line without an answer."""
    records: list[UsageRecord] = field(default_factory=list)
    _spent: Counter[str] = field(default_factory=Counter)
    _unpriced: int = 0

    def add(self, outcome: Outcome) -> None:
        """One line more is done with."""
        self.records.extend(outcome.records)
        for record in outcome.records:
            if record.cost_nano is None:
                self._unpriced += 1
            else:
                self._spent[record.currency] += record.cost_nano
        if outcome.error:
            self.failures.append((outcome.number, outcome.custom_id, outcome.error))
            return
        self.answered += 1
        self.guided += outcome.guided
        self.degraded += outcome.degraded
        self.cached += outcome.cached

    @property
    def done(self) -> int:
        """Lines that need nothing more."""
        return self.kept + self.answered + len(self.failures)

    @property
    def money(self) -> str:
        """What this run has cost so far, to four digits; calls of unknown price are told apart."""
        rounded = {currency: divide_half_even(nano, _SHOWN) * _SHOWN for currency, nano in sorted(self._spent.items())}
        known = " + ".join(f"{currency} {format_nano(nano, min_digits=4)}" for currency, nano in rounded.items())
        unknown = f"{self._unpriced} calls of unknown price" if self._unpriced else ""
        return " + ".join(filter(None, (known, unknown))) or "no money"

    @property
    def exit_code(self) -> int:
        """0: every line has its answer; 1: some have not; 2: none has."""
        if not self.failures:
            return 0
        return 1 if self.answered or self.kept else 2

    def as_json(self) -> dict[str, Any]:
        """The figures, for programs."""
        return {
            "lines": self.lines,
            "answered_before": self.kept,
            "answered": self.answered,
            "failed": len(self.failures),
            "failures": [{"line": n, "custom_id": i, "error": error} for n, i, error in sorted(self.failures)],
            "guided": self.guided,
            "degraded": self.degraded,
            "cached": self.cached,
            "wall_s": round(self.wall_s, 3),
        }
