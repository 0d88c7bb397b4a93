"""``gkt run``: answer a file of requests, in the OpenAI batch format, with pipelines of the configuration."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gkt_plugins.errors import ConfigError

if TYPE_CHECKING:
    from gkt_plugins.accounting.report import Report
    from gkt_plugins.batch.files import BatchFiles
    from gkt_plugins.batch.summary import Summary

__all__ = ["register"]

_FAILURES_SHOWN = 10
_INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("run")(run)


def run(
    requests: Annotated[
        Path,
        typer.Option("--input", "-i", help='JSON lines {"custom_id", "method", "url", "body"}, as OpenAI has.'),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Answers, one JSON object a line; a file of an earlier run goes on.")
    ],
    errors: Annotated[
        Path | None, typer.Option("--errors", help="Requests without an answer; default: OUTPUT with .errors in it.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="gkt.toml; default: GKT_CONFIG, else gkt.toml in this folder.")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="Answers every line, whatever model its body names.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A dotted override; may be repeated.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="Calls at a time of each engine; default: 16.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option("--engine", help="This process, or Ray Data, at RAY_ADDRESS or started here."),
    ] = "local",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that answer, with --engine ray.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Answer a file of requests. What OUTPUT has already is kept and costs nothing again.

    Exit code 0: every line has its answer; 1: some have not, and the file of errors says why; 2: none has.
    """
    from gkt_plugins.batch.files import BatchFiles, errors_path
    from gkt_plugins.batch.job import BatchJob, run_here
    from gkt_plugins.config import load_config
    from gkt_plugins.plugins import load_plugins

    plugins = load_plugins()
    loaded = load_config(config, overrides=overrides or [], plugins=plugins)
    job = BatchJob(loaded, requests, pipeline, concurrency)
    next(iter(job.lines()))  # or says why it cannot be read, before anything is written
    failed = errors or errors_path(output)
    if len({path.resolve() for path in (requests, output, failed)}) < 3:
        raise ConfigError(
            f"--input, --output and --errors must be three files, got {str(requests)!r}, {str(output)!r} and "
            f"{str(failed)!r}; rename one of them"
        )
    if engine == "ray":
        from gkt_plugins.batch.on_ray import run_on_ray

        doing = run_on_ray(workers)
    else:
        doing = run_here(plugins, os.environ)
    with BatchFiles(output, failed) as files:
        try:
            summary = asyncio.run(job.run(files, doing))
        except KeyboardInterrupt:
            print(f"interrupted; {str(output)!r} has what was answered, run again to go on", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from None
        from gkt_plugins.accounting.accountant import price_sources
        from gkt_plugins.accounting.report import build_report

        report = build_report(summary.records, ["role"], prices=price_sources(loaded, plugins))
        if as_json:
            typer.echo(json.dumps(summary.as_json() | {"usage": report.as_json()}, ensure_ascii=False, indent=2))
        else:
            _show(summary, report, files)
        _name_failures(summary, files)
    raise typer.Exit(summary.exit_code)


def _show(summary: Summary, report: Report, files: BatchFiles) -> None:
    from rich.console import Console
    from rich.table import Table

    from gkt_plugins.accounting.tables import show

    console = Console()
    table = Table(title=f"Answers in {files.output}")
    figures = {
        "lines": summary.lines,
        "kept": summary.kept,
        "answered": summary.answered,
        "failed": len(summary.failures),
        "guided": summary.guided,
        "degraded": summary.degraded,
        "cached": summary.cached,
    }
    for heading in figures:
        table.add_column(heading, justify="right")
    table.add_column("seconds", justify="right")
    table.add_row(*map(str, figures.values()), f"{summary.wall_s:.1f}")
    console.print(table)
    if summary.records:
        show(report, console)


def _name_failures(summary: Summary, files: BatchFiles) -> None:
    """On stderr, one line each."""
    for number, custom_id, error in sorted(summary.failures)[:_FAILURES_SHOWN]:
        named = f"line {number}" if custom_id is None else f"line {number}, {custom_id!r}"
        print(f"error: {named}: {error.removeprefix(f'line {number}').lstrip(': ')}", file=sys.stderr)
    if len(summary.failures) > _FAILURES_SHOWN:
        more = len(summary.failures) - _FAILURES_SHOWN
        print(f"error: and {more} more lines; {str(files.errors)!r} has every error", file=sys.stderr)
