"""What the hooks cost where they are on, and our own drafter beside vLLM's: same target, same draft, same prompts.

- ``on_vs_native``         tokens per second, draft from ``gkt.toml`` / vLLM's own ``draft_model`` without the plugin
- ``custom_vs_native``     the same with ``drafts_by = "gkt"``; not with ``--quick``
- ``…_t0``, ``…_t1``       by temperature: at 0 all sides write the same tokens, at 1 they draw their own
- ``…_greedy_equal``       share of prompts that got the same tokens as vLLM's own, at temperature 0
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TypeAlias

from benchmarks._report import Report
from benchmarks.vllm._engines import engines
from benchmarks.vllm._host import Job, Seen
from benchmarks.vllm._setting import GAMMA, PACKAGES, TEMPERATURES, Setting, native, section, take_turns
from gkt_plugins.speculation.counts import Counts

__all__ = ["run"]

BATCHES = {1: 2, 8: 16}
"""Requests in flight → prompts of a turn."""
MAX_TOKENS = 64
GOALS = {"on": 0.97, "custom": 0.9}
Conditions: TypeAlias = Mapping[tuple[float, int], Mapping[str, list[Seen]]]
"""Temperature and requests in flight → side → its turns."""


def run(setting: Setting) -> Report:
    """At both temperatures and two batch sizes."""
    report = Report("speculation", setting.quick, packages=PACKAGES)
    turns = 4 if setting.quick else 8
    sides = [native("native", setting, setting.draft), section("on", setting, setting.draft)]
    if not setting.quick:
        sides.append(section("custom", setting, setting.draft, vllm='drafts_by = "gkt"'))
    conditions = [(temperature, batch) for temperature in TEMPERATURES for batch in BATCHES]
    with engines(sides, setting.work) as running:
        take_turns(running, [_job(setting, 0, temperature, batch) for temperature, batch in conditions])
        seen = {
            condition: take_turns(running, [_job(setting, turn, *condition) for turn in range(turns)])
            for condition in conditions
        }
    for name, bound in GOALS.items():
        if name not in running:
            continue
        report.put_ratio(f"{name}_vs_native", *rates(seen, name), at_least=bound)
        for temperature in TEMPERATURES:
            chosen = {condition: seen[condition] for condition in conditions if condition[0] == temperature}
            report.put_ratio(f"{name}_vs_native_t{temperature:.0f}", *rates(chosen, name))
        report.put(f"{name}_greedy_equal", greedy_equal(seen, name))
    for (temperature, batch), by_side in seen.items():
        for name, every in by_side.items():
            key = f"{name}_%s_t{temperature:.0f}_b{batch}"
            report.put(key % "tokens_per_s", median(one.rate for one in every))
            report.put(key % "block_efficiency", sum((one.counts for one in every), Counts()).block_efficiency)
    report.setup.update(turns=turns, gamma=GAMMA, max_new_tokens=MAX_TOKENS, batches=list(BATCHES))
    return report


def _job(setting: Setting, turn: int, temperature: float, batch: int) -> Job:
    return Job(setting.some(BATCHES[batch], turn), batch, temperature, MAX_TOKENS)


def rates(seen: Conditions, name: str) -> tuple[list[float], list[float]]:
    """Tokens per second of all pairs: of this side, and of vLLM alone."""
    mine, theirs = ([one.rate for by_side in seen.values() for one in by_side[side]] for side in (name, "native"))
    return mine, theirs


def greedy_equal(seen: Conditions, name: str) -> float:
    """Share of the greedy answers that are vLLM's own, token for token."""
    pairs = [
        (mine, theirs)
        for (temperature, _), by_side in seen.items()
        if temperature == 0
        for one, other in zip(by_side[name], by_side["native"], strict=True)
        for mine, theirs in zip(one.answers, other.answers, strict=True)
    ]
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)
