"""``gkt demo``: both methods on the packaged models, in this process, offline."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils import logging

from gkt_plugins.demo.guided import GUIDANCE_TOKENS, Way, run_ways
from gkt_plugins.demo.problems import problems
from gkt_plugins.demo.show import show_guidance, show_problem, show_speculation
from gkt_plugins.demo.speculated import DRAFTS, Comparison, compare
from gkt_plugins.evaluation.plots import plot_frontier

__all__ = ["run_demo"]

_SPECULATED = 6


def run_demo(output: Path, *, num_problems: int, as_json: bool) -> None:
    """Run everything, show it, and write ``accuracy-cost.png``, ``demo.json`` and the ledger ``gkt.db`` to ``output``.

    :param num_problems: word problems per way of answering, at least 2.
    :param as_json: print the JSON object on standard output, and nothing else there.
    """
    begun = time.monotonic()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers draws one for every load, through ours
    output.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=as_json)
    held_out = list(problems(0, num_problems, split="test"))
    with _bar() as progress:
        task = progress.add_task("guidance", total=num_problems * (len(GUIDANCE_TOKENS) + 2))
        ways = asyncio.run(
            run_ways(
                held_out,
                (output / "gkt.db").resolve(),
                on_start=lambda label: progress.update(task, description=label),
                on_answer=lambda: progress.advance(task),
            )
        )
        task_2 = progress.add_task("speculation", total=(1 + len(DRAFTS)) * _SPECULATED)
        comparison = compare(held_out[:_SPECULATED], on_answer=lambda: progress.advance(task_2))
    picture = output / "accuracy-cost.png"
    plot_frontier(
        [way.point() for way in ways],
        picture,
        title=f"Guidance: a large model begins, a small one finishes ({num_problems} word problems)",
        cost_label="cost of 1,000 answers (USD, prices of the demo's gkt.toml)",
    )
    summary = _summary(ways, comparison, time.monotonic() - begun)
    (output / "demo.json").write_text(json.dumps(summary, indent=1) + "\n")
    _show(console, ways, comparison)
    console.print(f"{summary['seconds']:.0f} s on {torch.get_num_threads()} threads. Picture: {picture}")
    if as_json:
        print(json.dumps(summary))


def _summary(ways: list[Way], comparison: Comparison, seconds: float) -> dict[str, Any]:
    return {
        "guidance": [way.as_json() for way in ways],
        "speculation": comparison.as_json(),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
    }


def _show(console: Console, ways: list[Way], comparison: Comparison) -> None:
    show_guidance(console, ways)
    guided = max((way for way in ways if way.kind == "guided"), key=lambda way: way.side.accuracy.value)
    alone = next(way for way in ways if way.kind == "student")
    chosen = _telling(guided, alone)
    problem = guided.side.problems[chosen]
    show_problem(
        console, problem.question, guided.side.answers[chosen], alone.side.answers[chosen].text, problem.result
    )
    show_speculation(console, comparison)


def _telling(guided: Way, alone: Way) -> int:
    """The first problem that only guidance gets right; the first of all where there is none."""
    saved = (
        index
        for index, (with_teacher, without) in enumerate(zip(guided.side.hits, alone.side.hits, strict=True))
        if with_teacher and not without
    )
    return next(saved, 0)


def _bar() -> Progress:
    columns: tuple[Any, ...] = (
        TextColumn("{task.description:>18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
