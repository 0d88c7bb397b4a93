"""Budgets: what may be spent per UTC day, and what a request may cost at most before it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gkt_plugins.accounting.prices import cost_nano
from gkt_plugins.contracts import Price, PriceSource, Usage
from gkt_plugins.errors import ConfigError

__all__ = ["Budget", "require_prices", "utc_day", "worst_cost_nano"]


@dataclass(frozen=True, slots=True)
class Budget:
    """So much per UTC day, for everything of one scope together."""

    scope: str
    """What is limited, e.g. ``all`` or ``key:NAME``; any name."""
    limit_nano: int
    """Nano-units of ``currency``, at least 0."""
    currency: str = "USD"


def utc_day(moment: float) -> str:
    """The UTC day of ``moment`` (seconds since the epoch), e.g. ``2026-11-22``."""
    return datetime.fromtimestamp(moment, UTC).date().isoformat()


def worst_cost_nano(
    prices: PriceSource,
    *,
    teacher: str | None,
    student: str,
    prompt_tokens: int,
    guidance_tokens: int,
    max_tokens: int,
    n: int = 1,
    currency: str = "USD",
    timeout_s: float | None = None,
) -> int | None:
    """The most that a request can cost, in nano-units of ``currency``; None when a price is unknown or in another
    currency.

    The teacher writes all of its guidance (none where ``guidance_tokens`` is 0 or ``teacher`` None); each of ``n``
    students reads prompt and guidance and writes ``max_tokens``, since a teacher that fails leaves the whole answer to
    it. Nothing is taken for cached. As good as ``prompt_tokens``, which is often an estimate; what was really spent
    replaces it when the request ends.

    :param teacher, student: models, as ``prices`` knows them.
    :param timeout_s: how long a call may last; without it a price per hour has no bound, and gives None.
    """
    guidance = min(guidance_tokens, max_tokens) if teacher is not None else 0
    calls = [(student, prompt_tokens + guidance, max_tokens)] * n
    if teacher is not None and guidance:
        calls.append((teacher, prompt_tokens, guidance))
    total = 0
    for model, read, written in calls:
        price = prices.price(model)
        if price is None or price.currency != currency:
            return None
        cost = _worst(price, read, written, timeout_s)
        if cost is None:
            return None
        total += cost
    return total


def require_prices(prices: PriceSource, models: Sequence[str], *, currency: str) -> None:
    """Check that a budget in ``currency`` can be kept: every model needs a price in it.

    :raises ConfigError: one has none; names the first.
    """
    for model in models:
        price = prices.price(model)
        if price is None:
            raise ConfigError(
                f"a budget needs the price of every model, and {model!r} has none; add [prices.{model!r}]"
            )
        if price.currency != currency:
            raise ConfigError(
                f"a budget in {currency} needs prices in {currency}, and {model!r} is priced in {price.currency}; "
                "give both the same currency"
            )


def _worst(price: Price, read: int, written: int, timeout_s: float | None) -> int | None:
    """No token counts as cached, unless cached ones are the dearer."""
    dearer_cached = (price.cached_input_nano or 0) > (price.input_nano or 0)
    usage = Usage(read, read if dearer_cached else 0, written, seconds=timeout_s)
    return cost_nano(usage, price)
