"""Leniency: what accuracy it costs, what speed it brings, how far the output drifts; rule × ε, at temperature 0 and 1.

Accuracy, block efficiency and drift come from the packaged target, times from the expensive one, which computes the
same; γ = 5 throughout. Drift is the mean total variation between what a drafted token becomes under the rule (passed,
or recovered from the residual) and the target's distribution: both models are run over the lenient answers, and every
position counts at which a drafted token was tested. At temperature 0 no rule applies, and drift is the share of those
positions at which the target itself would have written another token.

- ``leniency_best_speed_DRAFT``  most speed against exact verification among rows whose accuracy interval reaches exact
                                 verification's; ``leniency_best_row_DRAFT`` names it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks._models import describe
from benchmarks._report import Report
from benchmarks.distillation._drift import greedy_drift, sampled_drift
from benchmarks.distillation._plots import plot_leniency
from benchmarks.distillation._setting import (
    MAX_NEW_TOKENS,
    Seeds,
    Setting,
    eos_of,
    held_out,
    in_parallel,
    load,
    markdown,
    right,
)
from gkt_plugins.contracts import LeniencyRule, Sampling, TraceEvent, Verifier
from gkt_plugins.demo.expensive import make_expensive
from gkt_plugins.evaluation.statistics import Estimate, ratio_estimate, share_estimate
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.leniency import CappedRule, exponential, linear, square
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult
from gkt_plugins.speculation.target import TransformersModel
from gkt_plugins.speculation.verifiers import ExactVerifier, LenientVerifier

__all__ = ["run"]

GAMMA = 5
PROBLEMS = 200
SPEED_TOKENS = 128
"""Of an answer, at most, where time is measured."""
DRIFT_ANSWERS = 64
"""Answers over which drift is measured: some thousands of positions."""
EPSILONS = (0.5, 0.2, 0.1, 0.05)
RULES: dict[str, LeniencyRule] = {
    "linear": linear, "square": square, "exponential": exponential, "capped": CappedRule(),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One way of verifying, at one temperature."""

    temperature: float
    rule: str
    """"exact"; "no rule" at temperature 0; else one of :data:`RULES`."""
    epsilon: float

    @property
    def name(self) -> str:
        return f"T={self.temperature:.0f} {self.rule} {self.epsilon:g}"

    def verifier(self) -> Verifier:
        return ExactVerifier() if self.epsilon == 1 else LenientVerifier(RULES.get(self.rule, linear), self.epsilon)


ROWS = [
    Row(0.0, "exact", 1.0),
    *(Row(0.0, "no rule", epsilon) for epsilon in EPSILONS),
    Row(1.0, "exact", 1.0),
    *(Row(1.0, rule, epsilon) for rule in RULES for epsilon in EPSILONS),
]


def run(setting: Setting) -> Report:
    """Measure every row."""
    report = Report("leniency", setting.quick)
    rows: list[dict[str, Any]] = []
    for name, draft in (("undistilled", setting.draft), ("distilled", setting.served)):
        measured = in_parallel(_measure, [(setting, draft, row) for row in ROWS], setting.workers)
        speeds, described = _speeds(setting, draft, prompts=4)
        rows += [
            {
                "draft": name, "temperature": row.temperature, "rule": row.rule, "epsilon": row.epsilon,
                "accuracy": found.accuracy.value, "accuracy_interval": [found.accuracy.low, found.accuracy.high],
                "drift": found.drift, "block_efficiency": found.counts.block_efficiency,
                "acceptance_rate": found.counts.acceptance_rate,
                "speed": speed.value, "speed_interval": [speed.low, speed.high],
            }
            for row, found, speed in zip(ROWS, measured, speeds, strict=True)
        ]  # fmt: skip
        _put(report, name, measured, speeds)
    report.setup.update(
        described, gamma=GAMMA, problems=PROBLEMS, max_new_tokens=MAX_NEW_TOKENS, rows=rows,
        drift="mean total variation to the target's distribution at the drafted positions that were tested",
    )  # fmt: skip
    setting.results.mkdir(parents=True, exist_ok=True)
    plot_leniency([row for row in rows if row["draft"] == "undistilled"], setting.results / "leniency.png")
    columns = ("draft", "temperature", "rule", "epsilon", "accuracy", "accuracy_interval", "drift",
               "block_efficiency", "speed")  # fmt: skip
    (setting.results / "leniency.md").write_text(markdown(rows, columns))
    return report


def _put(report: Report, draft: str, measured: Sequence[_Measured], speeds: Sequence[Estimate]) -> None:
    """Accuracy with exact verification, and the fastest row whose accuracy may still be the same."""
    exact: dict[float, float] = {}
    for row, found in zip(ROWS, measured, strict=True):
        if row.epsilon == 1:
            exact[row.temperature] = found.accuracy.value
            report.put_estimate(f"leniency_exact_accuracy_{draft}_t{row.temperature:.0f}", found.accuracy)
    harmless = [
        (speed.value, row.name, speed)
        for row, found, speed in zip(ROWS, measured, speeds, strict=True)
        if row.epsilon < 1 and found.accuracy.high >= exact[row.temperature]
    ]
    if harmless:
        _, name, speed = max(harmless, key=lambda entry: entry[:2])
        report.put(f"leniency_best_row_{draft}", name)
        report.put_estimate(f"leniency_best_speed_{draft}", speed)


# ------------------------------------------------------------------------------------------------- accuracy and drift


@dataclass(frozen=True)
class _Measured:
    accuracy: Estimate
    counts: Counts
    drift: float


def _measure(job: tuple[Setting, Path, Row]) -> _Measured:
    setting, folder, row = job
    target, draft = load(setting.target), load(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(setting.target)
    items = held_out(Seeds.LENIENCY, PROBLEMS, setting.target)
    blocks: list[TraceEvent] = []
    served = TransformersModel(target)
    loop = DecodeLoop(
        served,
        drafter=ModelDrafter(TransformersModel(draft), served.vocab_size),
        verifier=row.verifier(),
        gamma=GAMMA,
        max_batch=64,
        on_block=blocks.append,
    )
    results = loop.run(
        DecodeRequest(
            item.ids,
            Sampling(max_tokens=MAX_NEW_TOKENS, temperature=row.temperature, seed=n),
            eos_ids=eos_of(target),
            request_id=str(n),
        )
        for n, item in enumerate(items)
    )
    texts = [tokenizer.decode(result.token_ids, skip_special_tokens=True) for result in results]
    hits = sum(right(item, text) for item, text in zip(items, texts, strict=True))
    counts = sum((result.counts for result in results), Counts())
    return _Measured(
        share_estimate(hits, PROBLEMS), counts, _drift(row, target, draft, results[:DRIFT_ANSWERS], blocks)
    )


@torch.inference_mode()
def _drift(row: Row, target: Any, draft: Any, results: Sequence[DecodeResult], blocks: Sequence[TraceEvent]) -> float:
    """Mean over all tested positions."""
    tested: list[list[int]] = [[] for _ in results]
    for block in blocks:
        if int(block.request_id) >= len(results):
            continue
        places = range(len(block.token_ids), len(block.token_ids) + min(block.accepted + 1, len(block.drafted)))
        tested[int(block.request_id)].extend(places)
    total, positions = 0.0, 0
    for result, drafted in zip(results, tested, strict=True):
        ids = torch.tensor([[*result.request.token_ids, *result.token_ids]])
        before = torch.tensor([place - 1 for place in drafted if place < ids.shape[1]])
        p, q = (_probabilities(model, ids, before) for model in (target, draft))
        if row.temperature == 0:
            drift = greedy_drift(p, q, row.epsilon)
        else:
            drift = sampled_drift(p, q, RULES.get(row.rule, linear), row.epsilon)
        total += float(drift.sum())
        positions += len(drift)
    return total / positions


def _probabilities(model: Any, ids: Tensor, places: Tensor) -> Tensor:
    """[n, vocab] next-token distributions at ``places`` of ``ids`` [1, length], float64."""
    logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=places).logits[0]
    return logits.double().softmax(-1)


# --------------------------------------------------------------------------------------------------------------- speed


def _speeds(setting: Setting, folder: Path, prompts: int) -> tuple[list[Estimate], dict[str, Any]]:
    """Per row, speed per token against exact verification at the same temperature; batch 1, all rows in turns."""
    expensive = make_expensive(load(setting.target))
    target, draft = TransformersModel(expensive), TransformersModel(load(folder))
    items = held_out(Seeds.SPEED, prompts, setting.target)
    per_token = [[0.0] * prompts for _ in ROWS]

    def once(row: Row, item: Any, seed: int, limit: int) -> float:
        loop = DecodeLoop(target, drafter=ModelDrafter(draft, target.vocab_size), verifier=row.verifier(), gamma=GAMMA,
                          max_batch=1)  # fmt: skip
        sampling = Sampling(max_tokens=limit, temperature=row.temperature, seed=seed)
        begun = perf_counter()
        [result] = loop.run([DecodeRequest(item.ids, sampling, eos_ids=eos_of(expensive))])
        return (perf_counter() - begun) / len(result.token_ids)

    once(ROWS[0], items[0], 0, 32)  # not counted: allocations
    for number, item in enumerate(items):
        shift = number * len(ROWS) // prompts
        for place in [*range(shift, len(ROWS)), *range(shift)]:
            per_token[place][number] = once(ROWS[place], item, number, SPEED_TOKENS)
    exact = {row.temperature: per_token[place] for place, row in enumerate(ROWS) if row.rule == "exact"}
    speeds = [ratio_estimate(exact[row.temperature], own) for row, own in zip(ROWS, per_token, strict=True)]
    return speeds, describe(expensive, "target")
