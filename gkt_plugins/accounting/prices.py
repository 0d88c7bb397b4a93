"""Prices of models, and the cost of a call. An unknown price, or an unknown count, is *unknown*, never zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gkt_plugins.accounting.money import NANO, divide_half_even, nanoseconds, parse_nano
from gkt_plugins.contracts import Price, PriceSource, Usage
from gkt_plugins.errors import ConfigError

__all__ = ["ConfigPrices", "FirstKnown", "cost_nano", "parse_price"]

_PER_MILLION = 1_000_000
_NANOSECONDS_PER_HOUR = 3600 * NANO
_AMOUNTS = {
    "input_per_million": "input_nano",
    "output_per_million": "output_nano",
    "cached_input_per_million": "cached_input_nano",
    "per_hour": "hour_nano",
}


def parse_price(
    model: str, section: Mapping[str, Any], *, source: str = "config", max_prompt_tokens: int | None = None
) -> Price:
    """One ``[prices.MODEL]`` section: decimal strings, None for what is not given.

    Keys: ``input_per_million``, ``output_per_million``, ``cached_input_per_million`` (tokens), ``per_hour`` (own
    hardware), ``currency`` (default USD). A model may have both kinds of price; it then costs the sum.

    :raises ConfigError: an unknown key, an amount that is no exact decimal, or half a price.
    """
    where = f"prices.{model}"
    given = {key: value for key, value in section.items() if value is not None}
    currency = given.pop("currency", "USD")
    if not isinstance(currency, str) or not currency.strip():
        raise ConfigError(f'{where}.currency must be a name such as "USD", got {currency!r}')
    amounts: dict[str, int] = {}
    for key, value in given.items():
        if key not in _AMOUNTS:
            raise ConfigError(f"{where} has no key {key!r}; it takes currency, {', '.join(_AMOUNTS)}")
        try:
            amounts[_AMOUNTS[key]] = parse_nano(value)
        except ValueError as exc:
            raise ConfigError(f"{where}.{key} {exc}") from exc
    per_token = {"input_nano", "output_nano", "cached_input_nano"} & amounts.keys()
    if per_token and not {"input_nano", "output_nano"} <= per_token:
        raise ConfigError(
            f"{where} is half a price and would make every cost unknown; "
            "give both input_per_million and output_per_million"
        )
    if not amounts:
        raise ConfigError(f"{where} names no price; give input_per_million and output_per_million, or per_hour")
    return Price(currency=currency, source=source, max_prompt_tokens=max_prompt_tokens, **amounts)


class ConfigPrices:
    """Prices written down: in ``gkt.toml``, or in a file of their own."""

    def __init__(self, sections: Mapping[str, Mapping[str, Any]], *, source: str = "config") -> None:
        """``sections``: model → the keys of :func:`parse_price`. ``source``: what records name as theirs.

        :raises ConfigError: a section that is no price.
        """
        self._prices = {model: parse_price(model, section, source=source) for model, section in sections.items()}

    def price(self, model: str) -> Price | None:
        return self._prices.get(model)


class FirstKnown:
    """Several sources, the most trusted first: the first that knows a model gives its whole price.

    Prices are never mixed, not even to fill a gap: halves of two price lists make a price that nobody asks.
    """

    def __init__(self, sources: Sequence[PriceSource]) -> None:
        self._sources = tuple(sources)

    def price(self, model: str) -> Price | None:
        return next((price for source in self._sources if (price := source.price(model)) is not None), None)


def cost_nano(usage: Usage, price: Price | None) -> int | None:
    """What ``usage`` costs, in nano-units of ``price.currency``; None when anything needed to tell is unknown.

    Rounded once, to the nearest nano-unit. Counts that contradict each other (negative, more cached than prompt
    tokens) tell nothing, so their cost is unknown too.
    """
    if price is None:
        return None
    parts: list[int | None] = []  # each over the common denominator, so that one rounding is enough
    if price.hour_nano is not None:
        parts.append(_time_part(usage, price.hour_nano))
    if price.hour_nano is None or (price.input_nano, price.output_nano, price.cached_input_nano) != (None, None, None):
        parts.append(_token_part(usage, price))
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return divide_half_even(sum(known), _NANOSECONDS_PER_HOUR * _PER_MILLION)


def _time_part(usage: Usage, hour_nano: int) -> int | None:
    if usage.seconds is None or not 0 <= usage.seconds < float("inf"):
        return None
    return nanoseconds(usage.seconds) * hour_nano * _PER_MILLION


def _token_part(usage: Usage, price: Price) -> int | None:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if price.input_nano is None or price.output_nano is None or prompt is None or completion is None:
        return None
    if price.max_prompt_tokens is not None and prompt > price.max_prompt_tokens:
        return None
    cached_nano = price.input_nano if price.cached_input_nano is None else price.cached_input_nano
    cached = usage.cached_tokens
    if cached is None:
        if cached_nano != price.input_nano:
            return None
        cached = 0  # where both prices are the same, it does not matter how many were cached
    if completion < 0 or not 0 <= cached <= prompt:
        return None
    tokens = (prompt - cached) * price.input_nano + cached * cached_nano + completion * price.output_nano
    return tokens * _NANOSECONDS_PER_HOUR
