"""``gkt distill``: train a draft for a target."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gkt_plugins.distill.report import DistillReport
    from gkt_plugins.distill.report import Progress as Told
    from gkt_plugins.evaluation.statistics import Estimate

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("distill")(distill)


def distill(
    config: Annotated[Path, typer.Option("--config", help="What to distil, and how.")] = Path("distill.toml"),
    from_traffic: Annotated[
        Path | None, typer.Option("--from-traffic", help="Recorded traffic whose prompts and answers are trained on.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A dotted override; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object.")] = False,
) -> None:
    """Train a draft on what it writes itself, so that the target accepts more of it.

    Several processes: ``accelerate launch --multi_gpu -m gkt_plugins.cli distill …``.
    """
    from gkt_plugins.errors import require

    for module in ("torch", "transformers", "accelerate", "tensorboard"):
        require(module, extra="distill")
    from transformers.utils import logging

    from gkt_plugins.distill.options import load_options
    from gkt_plugins.distill.run import distill as run
    from gkt_plugins.distill.watching import tensorboard

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options = load_options(config, overrides or [])
    prompts = None
    if from_traffic is not None:
        from gkt_plugins.distill.run import traffic_prompts

        prompts = traffic_prompts(from_traffic)
    with _progress(options.train.steps) as observe:
        report = run(
            options,
            prompts=prompts,
            resume=resume,
            observe=observe,
            callbacks=[tensorboard(options)],
            command=sys.argv,
        )
    if int(os.environ.get("RANK", "0")) == 0:
        _show(report, as_json=as_json)


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[Told], None]]:
    """A bar on standard error, with loss and acceptance."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("Loading", total=steps)

        def observe(told: Told) -> None:
            loss = "" if told.loss is None else f"loss {told.loss:.4f}"
            acceptance = "" if told.acceptance is None else f"acceptance {_interval(told.acceptance)}"
            bar.update(task, completed=told.step, description="  ".join(filter(None, (loss, acceptance))))

        yield observe


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _show(report: DistillReport, *, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps(asdict(report) | {"output": str(report.output)}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="On held-out prompts")
    for heading in ("draft", "step", "acceptance_tv", f"block_efficiency, gamma {report.gamma}"):
        table.add_column(heading)
    table.add_row("before", "0", _interval(report.before), _interval(report.efficiency_before))
    table.add_row("written", str(report.best_step), _interval(report.after), _interval(report.efficiency_after))
    console = Console()
    console.print(table)
    rate = report.tokens / report.seconds if report.seconds else 0.0
    console.print(f"{report.steps} steps, {report.tokens} answer tokens, {rate:.0f} per second")
    for note in report.notes:
        console.print(note)
    if report.best_step == 0:
        console.print("No step was better than the draft was before: the draft is written as it was.")
    typer.echo(f"wrote {report.output}")
