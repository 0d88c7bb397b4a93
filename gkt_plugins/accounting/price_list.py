"""The price list that ships: public prices per token, with its date and a checksum.

Reduced from the model map of LiteLLM (MIT; notice in ``price_list.LICENSE``) by ``price_list_update``. It
knows a provider's public prices and none of yours: ``[prices.MODEL]`` always comes first.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from gkt_plugins.accounting.prices import parse_price
from gkt_plugins.contracts import Price
from gkt_plugins.errors import ConfigError

__all__ = ["PATH", "ListPrices", "checksum", "load_price_list"]

_log = logging.getLogger(__name__)

PATH = Path(__file__).with_name("price_list.json")

_FIELDS = ("input_per_million", "output_per_million", "cached_input_per_million", "max_prompt_tokens")


def checksum(prices: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of the prices as canonical JSON."""
    text = json.dumps(prices, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ListPrices:
    """Prices of a list, by the model's name."""

    def __init__(self, prices: Mapping[str, Price], *, provider: str = "") -> None:
        """``provider``: what the list's names begin with, before a slash, and the engine's do not."""
        self._prices = prices
        self._prefix = f"{provider}/" if provider else ""

    def price(self, model: str) -> Price | None:
        return self._prices.get(self._prefix + model)


def load_price_list(
    path: Path = PATH, *, name: str = "list", max_age_days: int | None = None, today: date | None = None
) -> dict[str, Price]:
    """The prices in ``path``: model, as the list names it → price, whose source is ``name`` and the list's date.

    Older than ``max_age_days`` is a warning in the log. ``today``: stands in for the current day in UTC.

    :raises ConfigError: a list that is damaged, or a price in it that is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        prices, expected = document["prices"], document["sha256"]
        made = date.fromisoformat(document["date"])
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise ConfigError(
            f"the price list {str(path)!r} cannot be read: {exc!r}; install gkt-plugins again, or name another list"
        ) from exc
    if (found := checksum(prices)) != expected:
        raise ConfigError(
            f"the price list {str(path)!r} must have the checksum {expected}, has {found}; it was changed: write "
            "your own prices into [prices.MODEL] and install gkt-plugins again"
        )
    age_days = ((today or datetime.now(UTC).date()) - made).days
    if max_age_days is not None and age_days > max_age_days:
        _log.warning(
            "the price list is of %s, %d days old; upgrade gkt-plugins, or write the prices that matter into [prices]",
            made,
            age_days,
        )
    source = f"{name} {made}"
    try:
        return {model: _price(model, fields, source) for model, fields in prices.items()}
    except ConfigError as exc:
        raise ConfigError(f"{str(path)!r}: {exc}") from exc


def _price(model: str, fields: Any, source: str) -> Price:
    if not isinstance(fields, dict) or not fields.keys() <= set(_FIELDS):
        raise ConfigError(f"prices.{model} must have keys out of {', '.join(_FIELDS)}, got {fields!r}")
    most = fields.get("max_prompt_tokens")
    if most is not None and (not isinstance(most, int) or most < 1):
        raise ConfigError(f"prices.{model}.max_prompt_tokens must be a number of at least 1, got {most!r}")
    amounts = {key: value for key, value in fields.items() if key != "max_prompt_tokens"}
    return parse_price(model, amounts, source=source, max_prompt_tokens=most)
