"""LoRA adapters of a server: on record by their own names, and at their base's price where they have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkt_plugins.contracts import Price, PriceSource

__all__ = ["AdapterPrices", "adapter_of"]


def adapter_of(body: Mapping[str, Any], state: Any) -> str:
    """The adapter that a request names; empty where it names none that is loaded.

    :param body: what vLLM may still refuse. ``state``: of vLLM's application, whose list grows and shrinks.
    """
    loaded = getattr(getattr(state, "openai_serving_models", None), "lora_requests", ())
    name = body.get("model")
    return name if isinstance(name, str) and name in loaded else ""


class AdapterPrices:
    """A price source to ask last."""

    def __init__(self, prices: PriceSource, base: str) -> None:
        """``prices``: all others. ``base``: the model whose price adapters have that ``prices`` does not know."""
        self._prices = prices
        self._base = base
        self.names: set[str] = set()
        """Adapters that were asked for; one that is unloaded meanwhile is paid for all the same."""

    def price(self, model: str) -> Price | None:
        return self._prices.price(self._base) if model in self.names else None
