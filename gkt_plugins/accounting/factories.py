"""The price sources that ship: ``config``, ``file`` and ``list``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gkt_plugins.accounting.prices import ConfigPrices
from gkt_plugins.contracts import BuildContext, Factory, Options, PriceSource
from gkt_plugins.errors import ConfigError

__all__ = ["PRICE_SOURCES", "FilePriceOptions", "ListPriceOptions"]


class FilePriceOptions(Options):
    """A price list that several configurations share."""

    path: Path
    """TOML with one table a model, written like ``[prices.MODEL]``; relative to the configuration's folder."""


class ListPriceOptions(Options):
    """Public prices, as they were on the list's date."""

    provider: str = ""
    """What the list's names of your models begin with and your engine's do not, such as `together_ai`."""
    max_age_days: Annotated[int, Field(ge=1)] | None = 120
    """An older list is warned of."""


def _config_prices(options: Options, context: BuildContext) -> PriceSource:
    config: Any = context.resources.get("config")
    if config is None:
        raise ConfigError("the price source 'config' needs a configuration with [prices.MODEL] sections, got none")
    return ConfigPrices({model: section.model_dump() for model, section in config.prices.items()})


def _file_prices(options: FilePriceOptions, context: BuildContext) -> PriceSource:
    path = (context.base_dir or Path()) / options.path.expanduser()
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:  # what is no TOML or no UTF-8 is a ValueError
        raise ConfigError(f"the price list {str(path)!r} cannot be read as TOML: {exc}") from exc
    for model, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"the price list {str(path)!r} must hold one table a model, got {model} = {table!r}")
    try:
        return ConfigPrices(tables, source=context.name or path.name)
    except ConfigError as exc:
        raise ConfigError(f"{str(path)!r}: {exc}") from exc


def _list_prices(options: ListPriceOptions, context: BuildContext) -> PriceSource:
    from gkt_plugins.accounting.price_list import ListPrices, load_price_list

    prices = load_price_list(name=context.name or "list", max_age_days=options.max_age_days)
    return ListPrices(prices, provider=options.provider)


PRICE_SOURCES: dict[str, Factory[PriceSource]] = {
    "config": Factory(_config_prices, summary="the [prices.MODEL] sections; always asked first"),
    "file": Factory(_file_prices, FilePriceOptions, "a price list in a TOML file of its own"),
    "list": Factory(_list_prices, ListPriceOptions, "the public prices that ship with this package"),
}
