"""The arithmetic of budgets, without a database: what a group of operations does to the totals of the days.

A store loads what the operations touch, locked against other processes, applies them in order, and writes back what
changed, all in one transaction. So the check and the reservation cannot come apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from gkt_plugins.accounting.budgets import Budget

__all__ = [
    "Books",
    "Day",
    "Operation",
    "Reserve",
    "Room",
    "Settle",
    "Total",
    "check_reserve",
    "check_settle",
    "touched",
]

_MOST = 2**63 - 1


class Day(NamedTuple):
    """What a total is kept for."""

    scope: str
    currency: str
    day: str


@dataclass(slots=True)
class Total:
    """Nano-units."""

    spent: int = 0
    reserved: int = 0


class Reserve(NamedTuple):
    """Set ``amount`` aside in all of ``budgets``, or in none. Result: the first budget without room, or None."""

    reservation_id: str
    budgets: tuple[Budget, ...]
    amount: int
    day: str


class Settle(NamedTuple):
    """Replace a reservation by what was spent; None: all of it. Result: None."""

    reservation_id: str
    spent: int | None


class Room(NamedTuple):
    """Result: the least that is left, at least 0."""

    budgets: tuple[Budget, ...]
    day: str


Operation: TypeAlias = Reserve | Settle | Room


def check_reserve(budgets: Sequence[Budget], amount_nano: int) -> None:
    """:raises ValueError: what no ledger could keep."""
    if len({budget.currency for budget in budgets}) > 1:
        raise ValueError(f"budgets reserved together share one currency, got {budgets!r}")
    if len({budget.scope for budget in budgets}) < len(budgets):
        raise ValueError(f"budgets reserved together have a scope each, got {budgets!r}")
    if not 0 <= amount_nano <= _MOST:
        raise ValueError(f"an amount to reserve is at least 0 and fits 64 bits, got {amount_nano}")


def check_settle(spent_nano: int | None) -> None:
    """:raises ValueError: what no ledger could keep."""
    if spent_nano is not None and not 0 <= spent_nano <= _MOST:
        raise ValueError(f"an amount spent is at least 0 and fits 64 bits, or None for unknown, got {spent_nano}")


def touched(operations: Iterable[Operation], held: Mapping[str, Mapping[Day, int]]) -> list[Day]:
    """The totals that ``operations`` read or change, in the one order in which every process locks them."""
    days = {day for amounts in held.values() for day in amounts}
    for operation in operations:
        if not isinstance(operation, Settle):
            days.update(Day(budget.scope, budget.currency, operation.day) for budget in operation.budgets)
    return sorted(days)


class Books:
    """The totals and reservations that a group of operations touches."""

    def __init__(self, totals: dict[Day, Total], held: dict[str, dict[Day, int]]) -> None:
        """``totals``: every one of :func:`touched`. ``held``: reservation id → what it set aside, so far."""
        self.totals = totals
        self._before = {day: (total.spent, total.reserved) for day, total in totals.items()}
        self._held_before = dict(held)
        self._held = held

    def apply(self, operation: Operation) -> Budget | int | None:
        """Carry one operation out. Result: as the operation says."""
        if isinstance(operation, Reserve):
            return self._reserve(operation)
        if isinstance(operation, Settle):
            self._settle(operation)
            return None
        return max(0, min(self._left(budget, operation.day) for budget in operation.budgets))

    @property
    def changed(self) -> dict[Day, Total]:
        """Totals to write back."""
        return {day: total for day, total in self.totals.items() if self._before[day] != (total.spent, total.reserved)}

    @property
    def made(self) -> dict[str, dict[Day, int]]:
        """Reservations to insert."""
        return {name: held for name, held in self._held.items() if self._held_before.get(name) is not held}

    @property
    def gone(self) -> list[str]:
        """Reservations to delete, before those to insert."""
        return sorted(name for name, held in self._held_before.items() if self._held.get(name) is not held)

    def _left(self, budget: Budget, day: str) -> int:
        total = self.totals[Day(budget.scope, budget.currency, day)]
        return budget.limit_nano - total.spent - total.reserved

    def _reserve(self, asked: Reserve) -> Budget | None:
        if asked.reservation_id in self._held:
            return None  # a replay
        for budget in asked.budgets:
            if self._left(budget, asked.day) < asked.amount:
                return budget
        amounts = {Day(budget.scope, budget.currency, asked.day): asked.amount for budget in asked.budgets}
        for day, amount in amounts.items():
            self.totals[day].reserved = min(_MOST, self.totals[day].reserved + amount)
        self._held[asked.reservation_id] = amounts
        return None

    def _settle(self, told: Settle) -> None:
        for day, amount in self._held.pop(told.reservation_id, {}).items():
            total = self.totals[day]
            total.reserved = max(0, total.reserved - amount)
            total.spent = min(_MOST, total.spent + (amount if told.spent is None else told.spent))
