"""``gkt plugins``: what is installed, what it provides, and what failed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from gkt_plugins.plugins import PluginInfo

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("plugins")(list_plugins)


def list_plugins(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array instead of a table.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when a plugin failed.")] = False,
) -> None:
    """List plugins: distribution, version, names provided, load errors."""
    from gkt_plugins.plugins import load_plugins

    infos = load_plugins().infos
    if as_json:
        typer.echo(json.dumps([asdict(info) for info in infos], ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        Console().print(_table(infos))
    if strict and any(info.status == "failed" for info in infos):
        raise typer.Exit(1)


def _table(infos: tuple[PluginInfo, ...]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("plugin", "distribution", "version", "status", "provides")
    for info in infos:
        style = {"loaded": "green", "failed": "red", "blocked": "yellow"}[info.status]
        lines = [_provided(hook, names) for hook, names in info.provides.items()]
        table.add_row(
            info.name, info.distribution, info.version, Text(info.status, style), Text(info.reason or "\n".join(lines))
        )
    return table


def _provided(hook: str, names: tuple[str, ...]) -> str:
    from gkt_plugins.plugins._loading import OBSERVING_HOOKS

    what = "observes" if hook in OBSERVING_HOOKS else ", ".join(names) or "nothing"
    return f"{hook.removeprefix('gkt_')}: {what}"
