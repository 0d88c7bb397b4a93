"""``gkt demo distill``: the packaged draft is distilled against the packaged target, live."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from gkt_plugins.demo._evaluate import load_tokenizer
from gkt_plugins.demo._tokenizers import render
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.distill.acceptance import AcceptanceReport, measure_acceptance
from gkt_plugins.distill.options import DistillOptions
from gkt_plugins.distill.run import DistillReport, distill
from gkt_plugins.distill.run import Progress as Told
from gkt_plugins.distill.samples import PromptItem
from gkt_plugins.evaluation.plots import plot_curve
from gkt_plugins.evaluation.statistics import Estimate

__all__ = ["RECIPE", "run_demo_distill"]

GAMMA = 7
RECIPE: dict[str, Any] = {
    "data": {"policy": "mixture", "lambda": 0.5, "rest": "target", "max_new_tokens": 256},
    "loss": {"divergence": "forward_kl"},
    "train": {"batch_size": 16, "learning_rate": 2e-3, "optimizer": "adamw", "warmup_steps": 5},
    "evaluation": {"prompts": 64, "temperature": 1.0, "gamma": GAMMA},
}
"""Half of the answers are the draft's own, half the target's: a draft that has never seen the target's wording does not
write it, so its own answers alone would take long to teach it."""
_TRAINING = 70_000_000, 4_000  # first seed and number
_MEASURING = 71_000_000, 64
_TESTING = 72_000_000, 64
_MEASUREMENTS = 20  # while training


def run_demo_distill(output: Path, *, steps: int, as_json: bool) -> None:
    """Distil, show acceptance rising, and write the draft, ``acceptance.png`` and ``provenance.json`` to ``output``.

    :param as_json: print the JSON object on standard output, and nothing else there.
    :raises ConfigError: ``output`` has a run already.
    """
    begun = time.monotonic()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    console = Console(stderr=as_json)
    options = demo_options(output, steps=steps)
    tokenizer = load_tokenizer(model_dir("teacher"))
    report = _distill(options, tokenizer)
    picture = output / "acceptance.png"
    plot_curve(
        report.acceptance,
        picture,
        title=f"The demo draft, distilled for {report.seconds:.0f} s",
        x_label="optimiser steps",
        y_label=f"acceptance on {report.before.n} held-out prompts",
    )
    measured = {name: _measure(folder, tokenizer) for name, folder in _drafts(output).items()}
    summary = _summary(report, measured, time.monotonic() - begun)
    (output / "demo.json").write_text(json.dumps(summary, indent=1) + "\n")
    _show(console, report, measured, output)
    console.print(f"{summary['seconds']:.0f} s on {torch.get_num_threads()} threads. Picture: {picture}")
    if as_json:
        print(json.dumps(summary))


def demo_options(output: Path, *, steps: int) -> DistillOptions:
    """What ``distill.toml`` would say."""
    sections = {name: dict(section) for name, section in RECIPE.items()}
    sections["train"] |= {"steps": steps, "save_steps": steps}
    sections["evaluation"] |= {"every": max(1, steps // _MEASUREMENTS)}
    models = {"target": str(model_dir("teacher")), "draft": str(model_dir("draft"))}
    return DistillOptions.model_validate({"models": models, "output": str(output.resolve()), **sections})


def _distill(options: DistillOptions, tokenizer: PreTrainedTokenizerFast) -> DistillReport:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("acceptance …", total=options.train.steps)

        def observe(told: Told) -> None:
            if told.acceptance is not None:
                bar.update(task, completed=told.step, description=f"acceptance {told.acceptance.value:.3f}")

        return distill(
            options,
            prompts=_items(tokenizer, *_TRAINING, split="train"),
            held_out=_items(tokenizer, *_MEASURING, split="test"),
            observe=observe,
            command=["gkt", "demo", "distill", "--steps", str(options.train.steps)],
        )


def _items(tokenizer: PreTrainedTokenizerFast, first: int, count: int, *, split: Any) -> list[PromptItem]:
    """Questions without answers: on-policy distillation needs none."""
    chosen = list(problems(first, count, split=split))
    texts = [render(problem.question) for problem in chosen]
    rows = tokenizer(texts).input_ids
    return [PromptItem(tuple(ids), text, family=p.family) for ids, text, p in zip(rows, texts, chosen, strict=True)]


def _drafts(output: Path) -> dict[str, Path]:
    return {"before": model_dir("draft"), "after": output}


def _measure(folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[float, AcceptanceReport]:
    """Temperature → acceptance in the decode loop, on prompts that neither trained nor chose the draft."""
    target, draft = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (model_dir("teacher"), folder)
    )
    prompts = _items(tokenizer, *_TESTING, split="test")
    return {
        temperature: measure_acceptance(
            target,
            draft,
            prompts,
            temperature=temperature,
            gammas=[GAMMA],
            max_new_tokens=256,
            seed=0,
            eos_ids=(int(tokenizer.eos_token_id or 0),),
        )
        for temperature in (0.0, 1.0)
    }


def _summary(
    report: DistillReport, measured: dict[str, dict[float, AcceptanceReport]], seconds: float
) -> dict[str, Any]:
    return {
        "steps": report.steps,
        "best_step": report.best_step,
        "tokens": report.tokens,
        "acceptance": [[step, round(estimate.value, 4)] for step, estimate in report.acceptance],
        "measured": {
            name: {
                f"t{temperature:g}": {
                    "acceptance_tv": round(one.acceptance_tv.value, 4),
                    "block_efficiency": round(one.block_efficiency(GAMMA).value, 3),
                }
                for temperature, one in by_temperature.items()
            }
            for name, by_temperature in measured.items()
        },
        "training_seconds": round(report.seconds, 1),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
    }


def _show(
    console: Console, report: DistillReport, measured: dict[str, dict[float, AcceptanceReport]], output: Path
) -> None:
    count = len(measured["before"][0.0].prompts)
    table = Table(
        title=f"DistillSpec: {report.tokens:,} answer tokens trained on; measured on {count} new problems",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("", *measured):
        table.add_column(column, justify="left" if not column else "right")
    for temperature in (0.0, 1.0):
        found = [by_temperature[temperature] for by_temperature in measured.values()]
        table.add_row(f"acceptance, T = {temperature:g}", *(_interval(one.acceptance_tv) for one in found))
    for temperature in (0.0, 1.0):
        found = [by_temperature[temperature] for by_temperature in measured.values()]
        efficiencies = (_interval(one.block_efficiency(GAMMA)) for one in found)
        table.add_row(f"tokens per target call, T = {temperature:g}, γ = {GAMMA}", *efficiencies)
    console.print(table)
    console.print(_steps(report.acceptance))
    console.print(
        f"\nThe draft is in {output}. What it is worth on this machine, to a target of any size:", style="dim"
    )
    console.print(f"  gkt plan --target TARGET --draft {output} --prompts PROMPTS.jsonl\n", style="dim")


def _steps(measured: Sequence[tuple[int, Estimate]]) -> str:
    """How acceptance rose, in one line."""
    shown = measured[:: max(1, len(measured) // 8)]
    return "acceptance by step: " + ", ".join(f"{step}: {estimate.value:.3f}" for step, estimate in shown)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
