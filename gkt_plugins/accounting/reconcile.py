"""Holds the ledger against a provider's bill: per model, over the days of the bill, within a stated tolerance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, TypeAlias

from gkt_plugins.accounting.bill import BillLine
from gkt_plugins.accounting.money import format_nano
from gkt_plugins.accounting.report import Tally
from gkt_plugins.contracts import GUIDANCE_CACHE, UsageRecord

__all__ = ["Difference", "Reconciliation", "period", "reconcile"]

Quantity: TypeAlias = Literal["prompt_tokens", "completion_tokens", "cost"]
Verdict: TypeAlias = Literal["agrees", "differs", "unknown", "not billed", "not in the ledger"]

QUANTITIES: tuple[Quantity, ...] = ("prompt_tokens", "completion_tokens", "cost")


@dataclass(frozen=True, slots=True)
class Difference:
    """One quantity of one model, on both sides. Cost is in nano-units."""

    model: str
    quantity: Quantity
    billed: int | None
    """None: the bill does not name the model."""
    booked: int | None
    """What the ledger's calls of known amount add up to; None where there are calls, and none of them is known."""
    unknown_calls: int
    """Calls of the ledger whose amount is not known, which the sum leaves out."""
    estimated_calls: int
    verdict: Verdict
    """``unknown``: the ledger knows of less, or of nothing, and has calls of unknown amount that may be the rest."""

    @property
    def difference(self) -> int | None:
        """Ledger minus bill."""
        return None if self.billed is None or self.booked is None else self.booked - self.billed

    @property
    def relative(self) -> float | None:
        """The difference as a fraction of the bill."""
        return None if not self.billed or self.difference is None else float(Fraction(self.difference, self.billed))

    def as_json(self) -> dict[str, Any]:
        money = self.quantity == "cost"
        return {
            "model": self.model,
            "quantity": self.quantity,
            "billed": _shown(self.billed, money),
            "booked": _shown(self.booked, money),
            "difference": _shown(self.difference, money),
            "relative": self.relative,
            "unknown_calls": self.unknown_calls,
            "estimated_calls": self.estimated_calls,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What came of it."""

    tolerance: Decimal
    currency: str
    differences: tuple[Difference, ...]
    """By model."""
    calls: int
    """Calls of the ledger that were held against the bill."""

    @property
    def agrees(self) -> bool:
        """Everything agrees within the tolerance."""
        return all(difference.verdict == "agrees" for difference in self.differences)

    def as_json(self) -> dict[str, Any]:
        return {
            "agrees": self.agrees,
            "tolerance": str(self.tolerance),
            "currency": self.currency,
            "calls": self.calls,
            "differences": [difference.as_json() for difference in self.differences],
        }


@dataclass(slots=True)
class _Side:
    """One model's sums in the ledger."""

    calls: int = 0
    estimated: int = 0
    sums: dict[Quantity, Tally] = field(default_factory=lambda: {quantity: Tally() for quantity in QUANTITIES})


def period(lines: Sequence[BillLine]) -> tuple[float | None, float | None]:
    """From the first day of the bill until the end of its last one, in seconds since the epoch; None where no line
    says its day."""
    days = sorted(line.day for line in lines if line.day is not None)
    if not days:
        return None, None
    first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (days[0], days[-1]))
    return first.timestamp(), (last + timedelta(days=1)).timestamp()


def reconcile(
    lines: Iterable[BillLine],
    records: Iterable[UsageRecord],
    *,
    tolerance: Decimal,
    currency: str = "USD",
    names: Mapping[str, str] | None = None,
    engines: Collection[str] = (),
) -> Reconciliation:
    """Compare sums per model.

    A quantity agrees when both sides differ by at most ``tolerance`` of the bill, a fraction, plus what the bill's
    own amounts may have been rounded by.

    :param records: of the time that the bill is for.
    :param currency: the bill's. A call that cost something in another one counts as one of unknown cost.
    :param names: model as billed → model as in the ledger.
    :param engines: whose calls the bill is for: a model of theirs that is not billed differs. None named: only models
        that the bill names are compared.
    """
    billed: dict[str, list[BillLine]] = defaultdict(list)
    for line in lines:
        billed[(names or {}).get(line.model, line.model)].append(line)
    told = [quantity for quantity in QUANTITIES if any(_said(line, quantity) for line in _all(billed))]
    booked: dict[str, _Side] = defaultdict(_Side)
    for record in records:
        wanted = record.engine in engines if engines else record.model in billed
        if wanted and record.price_source != GUIDANCE_CACHE:  # no provider saw that call
            _add(booked[record.model], record, currency)
    found = [
        _compared(model, quantity, billed.get(model), booked.get(model), tolerance)
        for model in sorted(billed.keys() | booked.keys())
        for quantity in told
        if model not in billed or any(_said(line, quantity) for line in billed[model])
    ]
    return Reconciliation(tolerance, currency, tuple(found), sum(side.calls for side in booked.values()))


def _compared(
    model: str, quantity: Quantity, lines: Sequence[BillLine] | None, side: _Side | None, tolerance: Decimal
) -> Difference:
    side = side or _Side()
    tally = side.sums[quantity]
    booked = tally.known if tally.known_calls or not tally.unknown_calls else None
    amounts = None if lines is None else [_VALUES[quantity](line) or 0 for line in lines]
    billed = None if amounts is None else sum(amounts)
    verdict: Verdict
    if billed is None:
        verdict = "agrees" if booked == 0 else "not billed"
    elif booked is None:
        verdict = "unknown"
    else:
        rounding = sum(line.rounding_nano for line in lines or ()) if quantity == "cost" else 0
        allowed = Fraction(tolerance) * abs(billed) + rounding
        if abs(booked - billed) <= allowed:
            verdict = "agrees"
        elif not side.calls:
            verdict = "not in the ledger"
        else:
            verdict = "unknown" if booked < billed and tally.unknown_calls else "differs"
    return Difference(model, quantity, billed, booked, tally.unknown_calls, side.estimated, verdict)


def _add(side: _Side, record: UsageRecord, currency: str) -> None:
    known = record.cost_nano is not None and (record.currency == currency or record.cost_nano == 0)
    side.calls += 1
    side.estimated += record.usage.estimated
    side.sums["prompt_tokens"].add(record.usage.prompt_tokens)
    side.sums["completion_tokens"].add(record.usage.completion_tokens)
    side.sums["cost"].add(record.cost_nano if known else None)


_VALUES: Mapping[Quantity, Callable[[BillLine], int | None]] = {
    "prompt_tokens": lambda line: line.prompt_tokens,
    "completion_tokens": lambda line: line.completion_tokens,
    "cost": lambda line: line.cost_nano,
}


def _said(line: BillLine, quantity: Quantity) -> bool:
    return _VALUES[quantity](line) is not None


def _all(billed: Mapping[str, Sequence[BillLine]]) -> Iterable[BillLine]:
    return (line for lines in billed.values() for line in lines)


def _shown(amount: int | None, money: bool) -> int | str | None:
    return format_nano(amount) if money and amount is not None else amount
