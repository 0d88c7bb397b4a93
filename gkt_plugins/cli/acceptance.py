"""``gkt acceptance``: what a draft is worth to its target, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gkt_plugins.distill.acceptance_report import AcceptanceReport
    from gkt_plugins.distill.training_figures import TrainingFigure

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("acceptance")(acceptance)


def acceptance(
    target: Annotated[str, typer.Option("--target", help="Folder of the target model, or its name on the Hub.")],
    draft: Annotated[str, typer.Option("--draft", help="Folder of the draft, or its name on the Hub.")],
    prompts: Annotated[
        Path, typer.Option("--prompts", help='JSON lines {"prompt" | "messages", "family"?}, at least 5.')
    ],
    against: Annotated[
        str | None, typer.Option("--against", help="Another draft to compare with, prompt by prompt.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option("--temperature", min=0.0, help="May be repeated; default: 0 and 1.")
    ] = None,
    gamma_max: Annotated[int, typer.Option("--gamma-max", min=1, help="Count for every gamma from 1 to this.")] = 10,
    limit: Annotated[int | None, typer.Option("--limit", min=5, help="Only so many prompts of the file.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Bound of an answer.")] = 200,
    verifier: Annotated[str, typer.Option("--verifier", help="exact or block; both are lossless.")] = "exact",
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same answers.")] = 0,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, …; default: cuda where there is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Measure what a draft is worth: on the target's own answers, and in the decode loop for every gamma.

    A draft that was distilled here is also held against what its training said of it.
    """
    from gkt_plugins._wording import suggestion
    from gkt_plugins.errors import ConfigError, require
    from gkt_plugins.speculation.factories import LOSSLESS_VERIFIERS

    if verifier not in LOSSLESS_VERIFIERS:
        known = suggestion(verifier, sorted(LOSSLESS_VERIFIERS))
        raise ConfigError(f"--verifier must be lossless, got {verifier!r}; {known}")
    for module in ("torch", "transformers"):
        require(module, extra="transformers")
    from transformers.utils import logging

    from gkt_plugins.distill.acceptance_run import AcceptanceRun, choose_device
    from gkt_plugins.distill.training_figures import read_training_figure

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    figure = read_training_figure(Path(draft))
    run = AcceptanceRun.load(
        target, prompts, limit=limit, max_tokens=max_tokens, seed=seed, verifier=verifier, device=choose_device(device)
    )
    sources = {"draft": draft} if against is None else {"draft": draft, "against": against}
    drafts = {name: run.load_draft(f"--{name}", source) for name, source in sources.items()}
    temperatures = sorted(set(temperature or [0.0, 1.0]))
    with _progress(len(temperatures) * (1 + len(drafts) * gamma_max)) as advance:
        reports = run.measure(drafts, temperatures, range(1, gamma_max + 1), advance=advance)
    if as_json:
        asked = {"target": target, "max_tokens": max_tokens, "seed": seed, "verifier": verifier}
        _print_json(asked, sources, reports, figure)
    else:
        _print_tables(sources, reports, figure)


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("Measuring", total=steps)
        yield lambda: bar.advance(task)


def _print_json(
    asked: Mapping[str, Any],
    sources: Mapping[str, str],
    reports: Mapping[str, list[AcceptanceReport]],
    figure: TrainingFigure | None,
) -> None:
    import json

    from gkt_plugins.distill.acceptance_report import compare

    measured = {
        name: {"source": source, "temperatures": [report.as_json() for report in reports[name]]}
        for name, source in sources.items()
    }
    comparison = [
        compare(other, report).as_json()
        for report, other in zip(reports["draft"], reports.get("against", []), strict=False)
    ]
    check = None if figure is None else figure.check(reports["draft"])
    training = None if check is None else check.as_json()
    whole = {**asked, "drafts": measured, "comparison": comparison, "training": training}
    typer.echo(json.dumps(whole, ensure_ascii=False, indent=2))


def _print_tables(
    sources: Mapping[str, str], reports: Mapping[str, list[AcceptanceReport]], figure: TrainingFigure | None
) -> None:
    from rich.console import Console

    from gkt_plugins.distill.acceptance_tables import show

    console = Console()
    console.print(f"draft: {sources['draft']}", highlight=False)
    if "against" in sources:
        console.print(f"other draft: {sources['against']}", highlight=False)
    for place, report in enumerate(reports["draft"]):
        show(report, console, against=reports["against"][place] if "against" in reports else None)
    if figure is not None:
        check = figure.check(reports["draft"])
        if check is None:
            t = f"{figure.temperature:g}"
            console.print(f"Training measured at temperature {t}: add --temperature {t} to hold it against the loop.")
        else:
            console.print(check.sentence(), style="green" if check.agrees else "yellow", highlight=False)
