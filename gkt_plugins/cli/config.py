"""``gkt config``: check a configuration, or print its JSON schema."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from gkt_plugins.plugins import PluginInfo

__all__ = ["register"]

config = typer.Typer(help="Check a configuration, or print its schema.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(config, name="config")


@config.command()
def schema() -> None:
    """Print the JSON schema of gkt.toml, with the options of every installed plugin."""
    from gkt_plugins.config._schema import config_schema
    from gkt_plugins.plugins import load_plugins

    typer.echo(json.dumps(config_schema(load_plugins()), ensure_ascii=False, indent=2))


@config.command()
def check(
    path: Annotated[
        Path | None, typer.Argument(help="The file; default: GKT_CONFIG, else gkt.toml in this folder.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A dotted override; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when a plugin failed to load.")] = False,
) -> None:
    """Print what would be used, defaults included. Exit code 2 names everything that is wrong, with file and line."""
    from gkt_plugins.config import as_written, chosen_names, environment_names, load_config
    from gkt_plugins.plugins import load_plugins

    plugins = load_plugins(strict=strict)
    loaded = load_config(path, overrides=overrides or [], plugins=plugins)
    for key, name in environment_names(loaded).items():
        if not os.environ.get(name):
            print(f"warning: {key} names {name}, and that environment variable is not set", file=sys.stderr)
    providers = {key: _provider(plugins.family(family).provider(name)) for key, family, name in chosen_names(loaded)}
    if as_json:
        described = {"source": str(loaded.source), "config": as_written(loaded), "providers": providers}
        typer.echo(json.dumps(described, ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        Console().print(_table(f"{loaded.source} is valid", as_written(loaded), providers))


def _provider(info: PluginInfo) -> str:
    return f"{info.distribution} {info.version}"


def _table(title: str, written: dict[str, Any], providers: dict[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("provided by")
    for key, value in _leaves(written, ()):
        if value is not None and value != {}:
            table.add_row(Text(key), Text(json.dumps(value, ensure_ascii=False)), Text(providers.get(key, "")))
    return table


def _leaves(value: object, path: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    from gkt_plugins._problems import dotted

    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield dotted(path), value
