"""The price source that ships: the ``[prices.MODEL]`` sections of the configuration."""

from __future__ import annotations

from typing import Any

from gkt_plugins.contracts import BuildContext, Factory, Options, PriceSource
from gkt_plugins.errors import ConfigError

__all__ = ["PRICE_SOURCES"]


def _config_prices(options: Options, context: BuildContext) -> PriceSource:
    from gkt_plugins.accounting.prices import ConfigPrices

    config: Any = context.resources.get("config")
    if config is None:
        raise ConfigError("the price source 'config' needs a configuration with [prices.MODEL] sections, got none")
    return ConfigPrices({model: section.model_dump() for model, section in config.prices.items()})


PRICE_SOURCES: dict[str, Factory[PriceSource]] = {
    "config": Factory(_config_prices, summary="the [prices.MODEL] sections of gkt.toml"),
}
