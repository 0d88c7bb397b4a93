"""``gkt guide``: ask the teacher ahead of time, and keep what it says in the guidance cache."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gkt_plugins.accounting.report import Report
    from gkt_plugins.batch.ahead import Ahead, AheadJob
    from gkt_plugins.contracts import UsageRecord
    from gkt_plugins.plugins import Plugins

__all__ = ["register"]

_FAILURES_SHOWN = 10

_FATES = ("known", "asked", "failed", "repeated", "unguided", "drawn")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("guide")(guide)


def guide(
    requests: Annotated[
        Path, typer.Option("--input", "-i", help="Requests to come, a line each, in the format of gkt run.")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", help="gkt.toml; default: GKT_CONFIG, else gkt.toml in this folder.")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="Guides every line, whatever model its body names.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A dotted override; may be repeated.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="Calls of a teacher at a time; default: 16.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Fill the guidance cache for requests that will come. What it has is not asked for, nor paid, again.

    Exit code 0: all guidance that can be kept is; 1: some is missing, and stderr says why; 2: all of it is.
    """
    from gkt_plugins.accounting.counterfactual import TeacherAlone
    from gkt_plugins.accounting.report import build_report
    from gkt_plugins.batch.ahead import AheadJob
    from gkt_plugins.config import load_config
    from gkt_plugins.plugins import load_plugins

    plugins = load_plugins()
    loaded = load_config(config, overrides=overrides or [], plugins=plugins)
    tally = Tally()
    asyncio.run(_fill(AheadJob(loaded, requests, pipeline, concurrency), plugins, tally))
    report = build_report(tally.records, ["model"])
    report.teacher_alone = TeacherAlone(None, {})  # there are no answers yet that could be compared
    if as_json:
        typer.echo(json.dumps(tally.as_json() | {"usage": report.as_json()}, ensure_ascii=False, indent=2))
    else:
        _show(tally, report)
    tally.name_failures()
    raise typer.Exit(tally.exit_code)


@dataclass
class Tally:
    """What became of the prompts."""

    fates: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str | None, str]] = field(default_factory=list)
    """Line number, custom id and reason."""
    records: list[UsageRecord] = field(default_factory=list)
    wall_s: float = 0.0
    _spent: Counter[str] = field(default_factory=Counter)
    _unpriced: int = 0

    def add(self, ahead: Ahead) -> None:
        self.fates[ahead.fate] += 1
        self.records.extend(ahead.records)
        for record in ahead.records:
            if record.cost_nano is None:
                self._unpriced += 1
            else:
                self._spent[record.currency] += record.cost_nano
        if ahead.fate == "failed":
            self.failures.append((ahead.number, ahead.custom_id, ahead.error))

    @property
    def money(self) -> str:
        """What the teacher has cost so far, to a hundredth; a price that is not known is said to be."""
        from gkt_plugins.accounting.money import NANO

        if self._unpriced:
            return "cost unknown"
        return ", ".join(f"{nano / NANO:.2f} {currency}" for currency, nano in sorted(self._spent.items()))

    @property
    def exit_code(self) -> int:
        if not self.failures:
            return 0
        return 1 if self.fates.total() > len(self.failures) else 2

    def as_json(self) -> dict[str, Any]:
        return {
            "prompts": self.fates.total(),
            **{fate: self.fates[fate] for fate in _FATES},
            "failures": [{"line": n, "custom_id": i, "error": error} for n, i, error in sorted(self.failures)],
            "wall_s": round(self.wall_s, 3),
        }

    def name_failures(self) -> None:
        """On stderr, one line each."""
        for number, custom_id, error in sorted(self.failures, key=lambda failure: failure[0])[:_FAILURES_SHOWN]:
            named = f"line {number}" if custom_id is None else f"line {number}, {custom_id!r}"
            said = error if error.startswith(f"line {number} ") else f"{named}: {error}"
            print(f"error: {said}", file=sys.stderr)
        if len(self.failures) > _FAILURES_SHOWN:
            more = len(self.failures) - _FAILURES_SHOWN
            print(f"error: and {more} more; --json names all", file=sys.stderr)


async def _fill(job: AheadJob, plugins: Plugins, tally: Tally) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    money = TextColumn("{task.fields[money]}")
    with Progress(*columns, money, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("Loading the teacher", total=None, money="")
        started = time.perf_counter()

        def ready(prompts: int, to_ask: int) -> None:
            nonlocal started
            started = time.perf_counter()
            progress.reset(task, description="Asking the teacher", total=to_ask)

        async with aclosing(job.run(plugins, os.environ, ready)) as done:
            async for ahead in done:
                tally.add(ahead)
                if ahead.records:
                    progress.update(task, advance=1, money=tally.money)
        tally.wall_s = time.perf_counter() - started


def _show(tally: Tally, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    from gkt_plugins.accounting.tables import show

    console = Console()
    table = Table(title="Guidance ahead of time")
    for heading in ("prompts", *_FATES, "seconds"):
        table.add_column(heading, justify="right")
    table.add_row(*map(str, (tally.fates.total(), *(tally.fates[fate] for fate in _FATES))), f"{tally.wall_s:.1f}")
    console.print(table)
    if tally.fates["drawn"]:
        console.print(
            "Drawn: sampled without a seed, so that no guidance can be kept; ask for temperature 0, or give a seed.",
            soft_wrap=True,
        )
    if tally.records:
        show(report, console)
