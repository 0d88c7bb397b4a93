"""``gkt plan``'s prediction against the wall clock, on a pair that pays and on pairs that do not.

The planner measures on prompts of its own; then other prompts are decoded with our loop, plainly and at the gamma that
it recommends, in turns. Prediction and measurement are for the same queue: so many rows, so many at a time.

- ``predicted_bN``, ``measured_bN``  time of plain decoding / time of speculating, batch N, recommended gamma
- ``planner_error_bN``               abs(predicted / measured - 1), of the medians
- ``planner_error_other_bN``         the same at another gamma that was not recommended
- ``decision_PAIR``                  what ``gkt plan`` would say
- ``measured_PAIR``                  what happens all the same at the best batch size and gamma that it found
- ``decisions_right``                share of the pairs on which the decision agrees with the clock

Pairs: ``expensive`` (the expensive target, the demo draft), ``small`` (the demo target itself, hardly dearer than its
draft) and ``twin`` (the demo target drafting for itself: everything is accepted, nothing is gained).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from transformers import LlamaForCausalLM

from benchmarks._models import chat_ids, describe, draft_model, expensive_target, held_out, tokenizer
from benchmarks._report import Report, arguments, take_turns
from gkt_plugins.contracts import Sampling
from gkt_plugins.demo.models import model_dir
from gkt_plugins.evaluation.statistics import Estimate, median_estimate
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.measuring import measure
from gkt_plugins.speculation.planner import MIN_GAIN, Measurement, Plan, make_plan
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel

BATCHES = (1, 4, 8)
GAMMA_MAX = 8
TURNS = 7
PLANNING_SEEDS = 7_000_000
"""First seed of the problems that the planner measures on."""


@dataclass
class Pair:
    """Two models, the prompts they are planned with and those they are timed on."""

    target: TransformersModel
    draft: TransformersModel
    eos_ids: tuple[int, ...]
    planning: list[list[int]]
    timing: list[list[int]]
    max_new_tokens: int

    def measure(self, batches: Sequence[int], budget_s: float) -> Measurement:
        return measure(
            self.target, ModelDrafter(self.draft, self.target.vocab_size), self.planning, batches=batches,
            gamma_max=GAMMA_MAX, max_new_tokens=self.max_new_tokens, eos_ids=self.eos_ids, budget_s=budget_s,
        )  # fmt: skip

    def decode(self, turn: int, *, batch: int, rows: int, gamma: int) -> float:
        """Seconds of our loop over the turn's prompts; gamma 0 is plain."""
        chosen = [self.timing[(turn * rows + i) % len(self.timing)] for i in range(rows)]
        sampling = Sampling(max_tokens=self.max_new_tokens)
        begun = perf_counter()
        drafter = ModelDrafter(self.draft, self.target.vocab_size) if gamma else None
        loop = DecodeLoop(self.target, drafter=drafter, gamma=gamma or 1, max_batch=batch)
        results = loop.run([DecodeRequest(prompt, sampling, eos_ids=self.eos_ids) for prompt in chosen])
        seconds = perf_counter() - begun
        for result in results:
            assert result.error is None, result.error
        return seconds

    def speedups(self, *, batch: int, rows: int, gammas: Sequence[int]) -> dict[int, Estimate]:
        """Per gamma, plain time / speculating time over pairs that took turns."""
        sides = {f"{gamma}": partial(self.decode, batch=batch, rows=rows, gamma=gamma) for gamma in (0, *gammas)}
        seconds = take_turns(sides, TURNS)
        return {
            gamma: median_estimate([a / b for a, b in zip(seconds["0"], seconds[f"{gamma}"], strict=True)])
            for gamma in gammas
        }


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__ or "", argv)
    quick = options.quick
    report = Report("planning", quick)
    tokens = tokenizer("teacher")
    large = expensive_target()
    small = LlamaForCausalLM.from_pretrained(model_dir("teacher"), dtype=torch.float32)
    draft = draft_model()
    max_new_tokens = 32 if quick else 128
    rows = {1: 1, 4: 6, 8: 10} if quick else {1: 2, 4: 8, 8: 12}
    budget_s = {"expensive": 45.0, "others": 25.0} if quick else {"expensive": 100.0, "others": 40.0}
    report.setup.update(
        describe(large, "teacher"), max_new_tokens=max_new_tokens, rows_per_turn=rows, turns=TURNS,
        budget_s=budget_s, verifier="exact, temperature 0",
    )  # fmt: skip
    planning = chat_ids(tokens, held_out(24 if quick else 48, first=PLANNING_SEEDS))
    timing = chat_ids(tokens, held_out(TURNS * max(rows.values())))
    make = partial(
        Pair, eos_ids=(tokens.eos_token_id,), planning=planning, timing=timing, max_new_tokens=max_new_tokens
    )
    right = [expensive_pair(report, make(TransformersModel(large), TransformersModel(draft)), rows, budget_s)]
    for name, own_draft in {"small": draft, "twin": small}.items():
        pair = make(TransformersModel(small), TransformersModel(own_draft))
        right.append(other_pair(report, name, pair, budget_s["others"]))
    report.put("decisions_right", sum(right) / len(right))
    report.goal("decisions_right", ">=", 1.0)
    report.finish(json_only=options.json, output=options.output)


def expensive_pair(report: Report, pair: Pair, rows: dict[int, int], budget_s: dict[str, float]) -> bool:
    """Prediction against wall clock; returns whether the decision was right."""
    measured = pair.measure(BATCHES, budget_s["expensive"])
    plan = make_plan(measured, batches=BATCHES, gamma_max=GAMMA_MAX)
    report.put("decision_expensive", plan.decision)
    report.setup.update(reason_expensive=plan.reason, measured_in_s=round(measured.seconds, 1), **_costs(plan))
    gains = []
    for batch in BATCHES:
        queue = make_plan(measured, batches=[batch], gamma_max=GAMMA_MAX, rows=rows[batch])
        best = queue.best(batch)
        other = GAMMA_MAX if best.gamma <= GAMMA_MAX // 2 else 1
        clock = pair.speedups(batch=batch, rows=rows[batch], gammas=(best.gamma, other))
        report.put(f"best_gamma_b{batch}", best.gamma)
        report.put_estimate(f"predicted_b{batch}", best.speedup)
        report.put_estimate(f"measured_b{batch}", clock[best.gamma])
        report.put(f"planner_error_b{batch}", abs(best.speedup.value / clock[best.gamma].value - 1))
        report.goal(f"planner_error_b{batch}", "<=", 0.10)
        predicted = queue.cell(batch, other).speedup.value
        report.put(f"planner_error_other_b{batch}", abs(predicted / clock[other].value - 1))
        report.setup[f"other_gamma_b{batch}"] = other
        gains.append(clock[best.gamma].value)
    return _agrees(plan, max(gains))


def other_pair(report: Report, name: str, pair: Pair, budget_s: float) -> bool:
    """A pair that must not be enabled: what the planner says, and what the clock says of its best cell."""
    measured = pair.measure((1, 4), budget_s)
    plan = make_plan(measured, batches=(1, 4), gamma_max=GAMMA_MAX)
    best = max((plan.best(batch) for batch in plan.batches), key=lambda cell: cell.speedup.value)
    clock = pair.speedups(batch=best.batch, rows=2 * best.batch, gammas=(best.gamma,))[best.gamma]
    report.put(f"decision_{name}", plan.decision)
    report.put_estimate(f"predicted_{name}", best.speedup)
    report.put_estimate(f"measured_{name}", clock)
    report.setup[f"reason_{name}"] = plan.reason
    return _agrees(plan, clock.value)


def _agrees(plan: Plan, measured: float) -> bool:
    """What is enabled is faster; what is not would have gained less than anybody asks for."""
    return measured > 1.0 if plan.decision == "enable" else measured < MIN_GAIN


def _costs(plan: Plan) -> dict[str, Any]:
    """What a reader needs to understand the predictions."""
    known = plan.as_json()
    return {
        key: {batch: _rounded(value) for batch, value in known[key].items()}
        for key in ("cost_ratio", "verify_in_plain_calls", "plain_step_s")
    } | {"acceptance_by_position": [round(rate or 0.0, 3) for rate in plan.acceptance[-1].by_position]}


def _rounded(value: Any) -> Any:
    return {key: round(v, 3) for key, v in value.items()} if isinstance(value, dict) else round(value, 4)


if __name__ == "__main__":
    main()
