"""``gkt run``: answer a file of prompts with a pipeline of the configuration."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gkt_plugins.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from gkt_plugins.accounting.report import Report
    from gkt_plugins.config import Config
    from gkt_plugins.contracts import Sampling, UsageRecord
    from gkt_plugins.guidance.answers import Answer
    from gkt_plugins.guidance.pipeline import Pipeline
    from gkt_plugins.guidance.rows import AnswerFile, Row, RowId
    from gkt_plugins.plugins import Plugins

__all__ = ["register"]

_FAILURES_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("run")(run)


def run(
    prompts: Annotated[
        Path, typer.Argument(help='JSON lines {"id"?, "prompt" | "messages" | "text"}, or .txt with a prompt a line.')
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Answers, one JSON object a line; a file of an earlier run goes on.")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", help="gkt.toml; default: GKT_CONFIG, else gkt.toml in this folder.")
    ] = None,
    pipeline: Annotated[str, typer.Option("--pipeline", help="The pipeline that answers.")] = "default",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A dotted override; may be repeated.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Bound of a whole answer; default: the preset's, or 256.")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0, help="Default: 0, greedy.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers per prompt, from one guidance.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Answer a file of prompts. Rows of OUTPUT that have an answer are kept, the others are run.

    Exit code 0: every row has its answer; 1: some rows failed; 2: nothing could be answered.
    """
    from gkt_plugins.config import load_config
    from gkt_plugins.guidance.pipeline import Pipeline
    from gkt_plugins.guidance.rows import AnswerFile, read_rows
    from gkt_plugins.plugins import load_plugins

    plugins = load_plugins()
    loaded = load_config(config, overrides=overrides or [], plugins=plugins)
    chosen = Pipeline.from_config(loaded, name=pipeline, plugins=plugins)
    if temperature is not None and loaded.pipelines[pipeline].guidance.preset is not None:
        raise ConfigError("--temperature has no effect beside guidance.preset, which fixes it; remove one of them")
    rows = read_rows(prompts)
    if output.exists() and output.samefile(prompts):
        raise ConfigError(f"--output names the prompts themselves, {str(prompts)!r}; name another file")
    sampling = replace(
        chosen.sampling, max_tokens=max_tokens or chosen.sampling.max_tokens, temperature=temperature or 0.0
    )
    with AnswerFile(output) as file:
        summary = Summary(rows=len(rows), kept=sum(row.id in file.answered for row in rows))
        asyncio.run(_answer(chosen, rows, file, sampling, n, summary))
    report = _report(summary.records, loaded, plugins)
    if as_json:
        typer.echo(json.dumps(summary.as_json() | {"usage": report.as_json()}, ensure_ascii=False, indent=2))
    else:
        _show(summary, report, output)
    summary.name_failures(output)
    raise typer.Exit(summary.exit_code)


@dataclass
class Summary:
    """What became of the rows."""

    rows: int
    kept: int
    """Answered by an earlier run."""
    failed: dict[RowId, str] = field(default_factory=dict)
    answered: int = 0
    guided: int = 0
    degraded: int = 0
    wall_s: float = 0.0
    records: list[UsageRecord] = field(default_factory=list)

    def add(self, row_id: RowId, answer: Answer) -> None:
        self.records.extend(answer.records)
        if answer.errors:
            self.failed[row_id] = str(answer.errors[0])
            return
        self.answered += 1
        self.guided += any(choice.guidance for choice in answer.choices)
        self.degraded += any(note.startswith("degraded:") for choice in answer.choices for note in choice.notes)

    @property
    def exit_code(self) -> int:
        if not self.failed:
            return 0
        return 1 if self.answered or self.kept else 2

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "answered_before": self.kept,
            "answered": self.answered,
            "failed": len(self.failed),
            "failures": [{"id": row_id, "error": error} for row_id, error in self.failed.items()],
            "guided": self.guided,
            "degraded": self.degraded,
            "wall_s": round(self.wall_s, 3),
        }

    def name_failures(self, output: Path) -> None:
        """On stderr, one line a row."""
        for row_id, error in list(self.failed.items())[:_FAILURES_SHOWN]:
            print(f"error: row {row_id!r}: {error}", file=sys.stderr)
        if len(self.failed) > _FAILURES_SHOWN:
            more = len(self.failed) - _FAILURES_SHOWN
            print(f"error: and {more} more rows; {str(output)!r} has every error", file=sys.stderr)


async def _answer(
    pipeline: Pipeline, rows: list[Row], file: AnswerFile, sampling: Sampling, n: int, summary: Summary
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from gkt_plugins.guidance.rows import answer_rows

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("Loading engines", total=summary.rows, completed=summary.kept)
        async with pipeline:
            progress.update(task, description="Answering")
            started = time.perf_counter()
            async with aclosing(answer_rows(pipeline, rows, file, sampling=sampling, n=n)) as answers:
                async for row_id, answer in answers:
                    summary.add(row_id, answer)
                    progress.advance(task)
            summary.wall_s = time.perf_counter() - started


def _report(records: list[UsageRecord], config: Config, plugins: Plugins) -> Report:
    from gkt_plugins.accounting.accountant import price_sources
    from gkt_plugins.accounting.report import build_report

    return build_report(records, ["role"], prices=price_sources(config, plugins))


def _show(summary: Summary, report: Report, output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from gkt_plugins.accounting.tables import show

    console: Console = Console()
    table = Table(title=f"Answers in {output}")
    for heading in ("rows", "answered before", "answered", "failed", "guided", "degraded", "seconds"):
        table.add_column(heading, justify="right")
    figures = (summary.rows, summary.kept, summary.answered, len(summary.failed), summary.guided, summary.degraded)
    table.add_row(*map(str, figures), f"{summary.wall_s:.1f}")
    console.print(table)
    if summary.records:
        show(report, console)
