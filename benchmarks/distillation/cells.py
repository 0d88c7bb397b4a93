"""Every divergence × data policy from the same start draft with equal optimiser steps, and the packaged draft.

Candidates are compared on validation prompts; the table and the plot show those figures, nulls too. The best of each
temperature, chosen there, is measured once more on test prompts that nothing was chosen on, and so is the packaged one.
A cell is the draft after its last step, also where it has become worse. The ground truth is worded as the corpus is,
not as the target: it is what a user's own data set looks like to a target that others have trained further.

- ``block_efficiency_gain_t0``, ``_t1``   best candidate / undistilled draft at γ = 7, on test prompts
- ``shipped_gain_t0``, ``_t1``            the packaged distilled draft / undistilled, on test prompts
- ``…_cap``                               (γ + 1) / τ₀: what a perfect draft would gain
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks._report import Report
from benchmarks.distillation._plots import plot_cells
from benchmarks.distillation._setting import (
    GAMMA,
    RECIPE,
    TEMPERATURES,
    Exam,
    Seeds,
    Setting,
    cap,
    held_out,
    in_parallel,
    last_weights,
    markdown,
    put_gains,
    train,
    training_prompts,
)
from gkt_plugins.distill.acceptance import AcceptanceReport, compare
from gkt_plugins.distill.policies import POLICIES

__all__ = ["run"]

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "tv")
STEPS = 60
SWEPT = 2
"""Cells that are trained once more with the loss at temperature 0: those of most gain there."""


@dataclass(frozen=True)
class Cell:
    """One way of training."""

    divergence: str
    policy: str
    loss_temperature: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.divergence} {self.policy}" + ("" if self.loss_temperature else " at temperature 0")


@dataclass(frozen=True)
class Candidate:
    """A draft that is there already, or what a cell is to make."""

    name: str
    draft: Path
    """Where it is; of a cell, the folder to write."""
    cell: Cell | None = None
    reports: Mapping[float, AcceptanceReport] = field(default_factory=dict)
    """Temperature → what was measured on the validation prompts."""
    seconds: float = 0.0
    tokens: int = 0


def run(setting: Setting) -> Report:
    """Train all cells, choose, and measure what was chosen."""
    report = Report("cells", setting.quick)
    validation = Exam.write(setting.target, held_out(Seeds.VALIDATION, 32 if setting.quick else 64, setting.target))

    def measured(candidates: Iterable[Candidate]) -> list[Candidate]:
        jobs = [(setting, validation, candidate) for candidate in candidates]
        return in_parallel(_train_and_measure, jobs, setting.workers)

    grid = [Cell("forward_kl", "mixture")] if setting.quick else [Cell(d, p) for d in DIVERGENCES for p in POLICIES]
    packaged = [Candidate("undistilled", setting.draft)]
    if setting.distilled.exists():
        packaged.append(Candidate("packaged", setting.distilled))
    cells = (Candidate(cell.name, setting.work / f"cell-{n}", cell) for n, cell in enumerate(grid))
    undistilled, *candidates = measured([*packaged, *cells])
    if not setting.quick:
        best = sorted((c for c in candidates if c.cell), key=lambda c: -_gain(undistilled, c, 0.0))[:SWEPT]
        colder = [replace(c.cell, loss_temperature=0.0) for c in best if c.cell]
        candidates += measured(Candidate(cell.name, setting.work / f"cold-{n}", cell) for n, cell in enumerate(colder))
    rows = [_row(undistilled, candidate) for candidate in candidates]
    _choose_and_test(setting, report, undistilled, candidates)
    for temperature, found in undistilled.reports.items():
        report.put_estimate(f"undistilled_acceptance_tv_t{temperature:.0f}", found.acceptance_tv)
    report.setup.update(
        steps=STEPS, recipe=RECIPE, gamma=GAMMA, validation_prompts=len(validation.prompts), rows=rows,
        undistilled=_figures(undistilled), start_draft=setting.draft.name,
    )  # fmt: skip
    if not setting.quick:
        _write(setting, rows)
    return report


def _train_and_measure(job: tuple[Setting, Exam, Candidate]) -> Candidate:
    """In a process of its own."""
    setting, exam, candidate = job
    if candidate.cell is None:
        return replace(candidate, reports=exam.measure(candidate.draft))
    cell = candidate.cell
    data: dict[str, Any] = {**RECIPE["data"], "policy": cell.policy}
    if cell.policy == "correct_only":
        data["scorer"] = "benchmarks.distillation._setting:right"
    begun = perf_counter()
    report = train(
        candidate.draft,
        target=setting.target,
        draft=setting.draft,
        prompts=training_prompts(STEPS * RECIPE["train"]["batch_size"], setting.target),
        measured=held_out(Seeds.VALIDATION, 8, setting.target),
        recipe={
            **RECIPE,
            "data": data,
            "loss": {"divergence": cell.divergence, "temperature": cell.loss_temperature},
            "train": {**RECIPE["train"], "steps": STEPS, "save_steps": STEPS},
        },
    )
    draft = last_weights(candidate.draft)
    seconds = perf_counter() - begun
    return replace(candidate, draft=draft, reports=exam.measure(draft), seconds=seconds, tokens=report.tokens)


def _choose_and_test(setting: Setting, report: Report, undistilled: Candidate, candidates: Sequence[Candidate]) -> None:
    """The best candidate of each temperature, and the packaged draft, on prompts that nothing was chosen on."""
    best = {t: max(candidates, key=lambda c: _gain(undistilled, c, t)) for t in TEMPERATURES}
    exam = Exam.write(setting.target, held_out(Seeds.TEST, 64 if setting.quick else 256, setting.target))
    chosen = list(dict.fromkeys([setting.draft, setting.distilled, *(best[t].draft for t in TEMPERATURES)]))
    found = [folder for folder in chosen if folder.exists()]
    tested = dict(zip(found, in_parallel(_measure, [(exam, folder) for folder in found], setting.workers), strict=True))
    before = tested[setting.draft]
    for temperature, candidate in best.items():
        only = {temperature: tested[candidate.draft][temperature]}
        put_gains(report, "block_efficiency_gain", before, only, at_least=1.15)
        report.setup[f"best_by_validation_t{temperature:.0f}"] = candidate.name
    if setting.distilled in tested:
        put_gains(report, "shipped_gain", before, tested[setting.distilled])
        for temperature, measured in tested[setting.distilled].items():
            report.put_estimate(f"shipped_acceptance_tv_t{temperature:.0f}", measured.acceptance_tv)
    report.setup["test_prompts"] = len(exam.prompts)


def _measure(job: tuple[Exam, Path]) -> dict[float, AcceptanceReport]:
    exam, draft = job
    return exam.measure(draft)


def _gain(undistilled: Candidate, candidate: Candidate, temperature: float) -> float:
    before, after = undistilled.reports[temperature], candidate.reports[temperature]
    return after.block_efficiency(GAMMA).value / before.block_efficiency(GAMMA).value


def _figures(candidate: Candidate) -> dict[str, float]:
    return {
        f"{name}_t{temperature:.0f}": round(value, 4)
        for temperature, report in candidate.reports.items()
        for name, value in (
            ("acceptance_tv", report.acceptance_tv.value),
            ("block_efficiency", report.block_efficiency(GAMMA).value),
        )
    }


def _row(undistilled: Candidate, candidate: Candidate) -> dict[str, Any]:
    cell = candidate.cell
    row: dict[str, Any] = {
        "divergence": cell.divergence if cell else candidate.name,
        "policy": cell.policy if cell else "",
        "loss_temperature": cell.loss_temperature if cell else None,
        "seconds": round(candidate.seconds, 1) if cell else None,
        "tokens": candidate.tokens if cell else None,
        **_figures(candidate),
    }
    for temperature, report in candidate.reports.items():
        gain = compare(undistilled.reports[temperature], report).block_efficiency[GAMMA]
        key = f"gain_t{temperature:.0f}"
        row[key] = round(gain.value, 4)
        row[f"{key}_interval"] = [round(gain.low, 4), round(gain.high, 4)]
        row[f"cap_t{temperature:.0f}"] = round(cap(undistilled.reports[temperature]), 4)
    return row


def _write(setting: Setting, rows: list[dict[str, Any]]) -> None:
    """Table and plot."""
    setting.results.mkdir(parents=True, exist_ok=True)
    columns = ("divergence", "policy", "loss_temperature", "acceptance_tv_t0", "acceptance_tv_t1", "gain_t0",
               "gain_t0_interval", "cap_t0", "gain_t1", "gain_t1_interval", "cap_t1", "seconds")  # fmt: skip
    (setting.results / "cells.md").write_text(markdown(rows, columns))
    plot_cells([row for row in rows if row["loss_temperature"] == 1.0], setting.results / "cells.png")
