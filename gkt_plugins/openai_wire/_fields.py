"""Typed readers of a request's keys: absent and null are the same, and what is wrong names its key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from gkt_plugins._problems import shown
from gkt_plugins.openai_wire.errors import InvalidRequest

__all__ = ["flag", "integer", "number", "refuse", "strings", "table"]

_LARGEST = 2**31 - 1


def refuse(param: str, expected: str, value: object) -> NoReturn:
    """:raises InvalidRequest: always: ``param`` must be ``expected``."""
    raise InvalidRequest(f"{param} must be {expected}, got {shown(value)}", param=param, code="invalid_value")


def integer(body: Mapping[str, Any], key: str, *, low: int = 0, high: int = _LARGEST) -> int | None:
    """A whole number in [low, high]."""
    value = body.get(key)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        refuse(key, f"a whole number from {low} to {high}", value)
    return value


def number(
    body: Mapping[str, Any], key: str, *, low: float, high: float, default: float, above_low: bool = False
) -> float:
    """A number in [low, high], or in (low, high] with ``above_low``; never NaN."""
    value = body.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not low <= value <= high or (above_low and value == low):
        allowed = f"above {low:g} and at most {high:g}" if above_low else f"from {low:g} to {high:g}"
        refuse(key, f"a number {allowed}", value)
    return float(value)


def flag(body: Mapping[str, Any], key: str) -> bool:
    """True or false; absent is false."""
    value = body.get(key)
    if value is None:
        return False
    if value is not True and value is not False:
        refuse(key, "true or false", value)
    return bool(value)


def table(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A JSON object; absent is empty."""
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        refuse(key, "an object", value)
    return value


def strings(body: Mapping[str, Any], key: str, *, most: int) -> tuple[str, ...]:
    """A string, or up to ``most`` of them, none empty."""
    value = body.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if (
        not isinstance(value, Sequence)
        or len(value) > most
        or not all(isinstance(item, str) and item for item in value)
    ):
        refuse(key, f"a string or a list of at most {most}, none of them empty", value)
    return tuple(value)
