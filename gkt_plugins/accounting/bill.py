"""A provider's bill as CSV: a heading line, then one line per model, or per model and day, or per call."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from gkt_plugins.accounting.budgets import utc_day
from gkt_plugins.accounting.money import NANO
from gkt_plugins.errors import BackendError, ConfigError

__all__ = ["FIELDS", "BillLine", "read_bill"]

FIELDS: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "model_name", "model_id"),
    "day": ("day", "date", "usage_date", "start_time", "timestamp"),
    "prompt_tokens": ("prompt_tokens", "input_tokens"),
    "completion_tokens": ("completion_tokens", "output_tokens"),
    "cost": ("cost", "amount", "cost_usd", "total_cost"),
}
"""What is read from a bill → headings that say so; upper case, spaces and hyphens make no difference."""


@dataclass(frozen=True, slots=True)
class BillLine:
    """One line; None is what it does not say."""

    model: str
    day: str | None = None
    """UTC, e.g. ``2026-11-22``."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_nano: int | None = None
    """Nano-units of the bill's currency; below 0 for a credit."""
    rounding_nano: int = 0
    """By how much the cost may have been rounded: half of its last digit."""


def read_bill(path: Path, columns: Mapping[str, str] | None = None) -> list[BillLine]:
    """Every line of the bill.

    :param columns: field → heading, for a bill whose headings are not among :data:`FIELDS`.
    :raises BackendError: the file cannot be read.
    :raises ConfigError: no model, nothing to compare, or a cell that is not what its heading says; names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise BackendError(f"the bill {str(path)!r} cannot be read as CSV in UTF-8: {exc}; export it again") from exc
    headings = rows[0] if rows else []
    places = _places(path, headings, columns or {})
    lines = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(headings):
            raise ConfigError(
                f"the bill {str(path)!r}, line {number}, must have {len(headings)} cells as its heading has, "
                f"got {len(row)}; export it again"
            )
        cells = {field: row[place].strip() for field, place in places.items()}
        try:
            lines.append(_line(cells))
        except ValueError as exc:
            where = f"the bill {str(path)!r}, line {number}"
            raise ConfigError(f"{where}: {exc}; name the right column with --column") from exc
    return lines


def _places(path: Path, headings: list[str], columns: Mapping[str, str]) -> dict[str, int]:
    plain = [_plain(heading) for heading in headings]
    places = {}
    for field, usual in FIELDS.items():
        named = columns.get(field)
        found = [plain.index(_plain(name)) for name in ([named] if named else usual) if _plain(name) in plain]
        if found:
            places[field] = found[0]
        elif named:
            raise ConfigError(f"the bill {str(path)!r} has no column {named!r}; it has {', '.join(headings)}")
    if "model" not in places or not places.keys() & {"prompt_tokens", "completion_tokens", "cost"}:
        raise ConfigError(
            f"the bill {str(path)!r} must have columns for the model and for tokens or cost, has "
            f"{', '.join(headings) or 'none'}; name them with --column, such as --column cost='Amount'"
        )
    return places


def _plain(heading: str) -> str:
    return heading.strip().lower().replace(" ", "_").replace("-", "_")


def _line(cells: Mapping[str, str]) -> BillLine:
    if not cells["model"]:
        raise ValueError("the model is missing")
    cost = _amount(cells.get("cost", ""))
    exponent = 0 if cost is None else int(cost.as_tuple().exponent)
    return BillLine(
        model=cells["model"],
        day=_day(cells["day"]) if "day" in cells else None,
        prompt_tokens=_tokens("prompt_tokens", cells.get("prompt_tokens", "")),
        completion_tokens=_tokens("completion_tokens", cells.get("completion_tokens", "")),
        cost_nano=None if cost is None else round(cost * NANO),
        rounding_nano=0 if cost is None else round(NANO * Decimal(10) ** exponent / 2),
    )


def _tokens(field: str, cell: str) -> int | None:
    if not cell:
        return None
    try:
        count = Decimal(cell)
        if count == count.to_integral_value() and 0 <= count < 2**63:
            return int(count)
    except InvalidOperation:
        pass
    raise ValueError(f"{field} must be a whole number of at least 0, got {cell!r}")


def _amount(cell: str) -> Decimal | None:
    if not cell:
        return None
    try:
        amount = Decimal(cell.removeprefix("$"))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or abs(amount) > 10**9:
        raise ValueError(f"cost must be a decimal number such as 12.34, got {cell!r}")
    return amount


def _day(cell: str) -> str:
    """Of a day, a time in ISO form (UTC unless it says otherwise), or seconds since the epoch."""
    try:
        if cell.isdecimal() and len(cell) > 8:
            return utc_day(int(cell))
        moment = datetime.fromisoformat(cell)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).date().isoformat()
    except (ValueError, OverflowError, OSError) as exc:
        raise ValueError(f"day must be a day or a time such as 2026-11-22, got {cell!r}") from exc
