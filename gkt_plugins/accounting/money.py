"""Money as integers: nano-units (1e-9) of a named currency, exact from the price list to the report.

No float ever holds an amount. A float second is turned into whole nanoseconds once, and those are split and added.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = [
    "NANO",
    "divide_half_even",
    "format_money",
    "format_nano",
    "nanoseconds",
    "parse_nano",
    "split",
    "split_seconds",
]

NANO = 1_000_000_000
"""Nano-units in one unit."""

_DECIMAL = re.compile(r"(\d+)(?:\.(\d{1,9}))?", re.ASCII)


def parse_nano(text: str) -> int:
    """Nano-units of a decimal string such as ``"2.50"``, at least 0, with at most 9 digits after the point.

    :raises ValueError: anything else; a float in particular, because 0.1 is not a decimal tenth.
    """
    match = _DECIMAL.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(
            f'must be a decimal string like "2.50", at least 0 and with at most 9 digits after the point, got {text!r}'
        )
    whole, fraction = match.group(1), match.group(2) or ""
    return int(whole) * NANO + int(fraction.ljust(9, "0"))


def format_nano(nano: int, *, min_digits: int = 2) -> str:
    """The exact decimal string of ``nano``; trailing zeros beyond ``min_digits`` are left out."""
    whole, fraction = divmod(abs(nano), NANO)
    digits = f"{fraction:09d}".rstrip("0").ljust(min_digits, "0")
    return f"{'-' if nano < 0 else ''}{whole}.{digits}"


def format_money(nano: int | None, currency: str) -> str:
    """``USD 0.0123``, every digit of it; ``unknown`` for None, which is never shown as zero."""
    return "unknown" if nano is None else f"{currency} {format_nano(nano)}"


def divide_half_even(numerator: int, denominator: int) -> int:
    """``numerator / denominator`` (positive) rounded to the nearest integer, ties to even."""
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    return quotient + (twice > denominator or (twice == denominator and quotient % 2 == 1))


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Share ``total`` out in proportion to ``weights`` (each at least 0); the shares add up to ``total`` exactly.

    Largest remainder first, earlier rows first among equals. Where no row has weight, all weigh the same.
    """
    if not weights:
        raise ValueError("nothing to split over: expected at least one weight")
    if min(weights) < 0:
        raise ValueError(f"weights must be at least 0, got {min(weights)}")
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda row: -(total * weights[row] % whole))
    for row in by_remainder[: total - sum(shares)]:
        shares[row] += 1
    return shares


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds nearest to ``seconds``."""
    return round(seconds * NANO)


def split_seconds(seconds: float, generated_tokens: Sequence[int]) -> list[float]:
    """Share a batch's wall time out over its rows by generated tokens, in seconds.

    Each share is a whole number of nanoseconds, and as such (:func:`nanoseconds`, what the ledger keeps) the shares
    add up to the batch's wall time exactly.
    """
    return [share / NANO for share in split(nanoseconds(seconds), generated_tokens)]
