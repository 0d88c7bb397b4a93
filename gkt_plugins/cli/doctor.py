"""``gkt doctor``: does what the configuration names work, and how will it be used?"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from gkt_plugins.config import Config
    from gkt_plugins.doctor import Examination, Part

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor")(doctor)


def doctor(
    engines: Annotated[list[str] | None, typer.Argument(help="Engines to look at; default: everything.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="gkt.toml; default: GKT_CONFIG, else gkt.toml in this folder.")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask endpoints again; otherwise answers of a week are believed.")
    ] = False,
    vllm: Annotated[
        bool, typer.Option("--vllm", help="For vLLM: will it load the plugins, and do what is configured?")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Look at keys, endpoints, prices, ledger and cache, and say how guidance will reach the student.

    An endpoint that is asked for the first time gets about a dozen tiny requests. Exits with 1 when something cannot be
    used.
    """
    from gkt_plugins.config import load_config
    from gkt_plugins.doctor import Examination, examine
    from gkt_plugins.plugins import load_plugins

    plugins = load_plugins()
    loaded = load_config(config, plugins=plugins)
    around = "vllm" if vllm else None
    found = asyncio.run(examine(loaded, plugins, os.environ, engines=engines or (), refresh=refresh, around=around))
    if vllm:
        found = Examination((*found.parts, _vllm(loaded)))
    if as_json:
        parts = [asdict(part) for part in found.parts]
        typer.echo(json.dumps({"ok": found.ok, "parts": parts}, ensure_ascii=False, indent=2))
    else:
        _show(found)
    if not found.ok:
        raise typer.Exit(1)


def _vllm(config: Config) -> Part:
    from gkt_plugins.doctor import Part
    from gkt_plugins.errors import GktError
    from gkt_vllm.doctor import examine_vllm

    try:
        return Part("vllm", "", tuple(examine_vllm(config, os.environ)))
    except GktError as exc:
        return Part("vllm", "", (), str(exc))


def _show(found: Examination) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for part in found.parts:
        style = "red" if part.error else "yellow" if any(one.good is False for one in part.findings) else "green"
        console.print(Text(f"{part.kind} {part.name}".rstrip(), f"bold {style}"))
        console.print(_table(part))
    console.print(Text(_outcome(found), "bold"))


def _outcome(found: Examination) -> str:
    if not found.ok:
        return "Not all of it can be used."
    if any(one.good is False for part in found.parts for one in part.findings):
        return "All of it can be used, but see what is marked with !"
    return "All of it can be used."


def _table(part: Part) -> Table:
    from rich.table import Table
    from rich.text import Text

    marks = {True: ("✓", "green"), False: ("!", "yellow"), None: ("·", "dim")}
    table = Table.grid(padding=(0, 1))
    for _ in range(4):
        table.add_column(overflow="fold")  # a path is to be copied, and ends in no "…"
    for finding in part.findings:
        mark, style = marks[finding.good]
        value = Text(finding.value)
        if finding.good is False and finding.advice:
            value.append(f"\n{finding.advice}", "yellow")
        table.add_row(" ", Text(mark, style), Text(finding.name, "dim"), value)
    if part.error:
        table.add_row(" ", Text("✗", "red"), Text("error", "red"), Text(part.error, "red"))
    return table
