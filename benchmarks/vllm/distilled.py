"""What distillation brings inside vLLM: the packaged draft before and after, same target, same prompts, in turns.

- ``distilled_block_efficiency_gain_tN``  tokens per target call, distilled / undistilled, both with 7 tokens a block
- ``distilled_throughput_gain_tN``        tokens per second, distilled / the better of two draft lengths of the
                                          undistilled one (4, which suits it, and 7)
- ``counters_equal``                      share of jobs in which the plugin's counters on vLLM's metrics page are
                                          vLLM's own, mapped to our terms
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks._report import Report
from benchmarks.vllm._engines import Engine, engines
from benchmarks.vllm._host import Job, Seen
from benchmarks.vllm._setting import GAMMA, PACKAGES, TEMPERATURES, Setting, section, take_turns
from gkt_plugins.speculation.counts import Counts

__all__ = ["run"]

LONG = 7
"""Draft length at which a good draft shows what it can."""
MAX_TOKENS = 96
ALONE, TOGETHER = 16, 5
"""Prompts one at a time; turns of 16 prompts, 8 at once."""
_SIDES = ("undistilled", "undistilled_short", "distilled")


def run(setting: Setting) -> Report:
    """Both temperatures."""
    report = Report("distilled", setting.quick, packages=PACKAGES)
    assert setting.distilled
    sides = [
        section("undistilled", setting, setting.draft, LONG),
        section("undistilled_short", setting, setting.draft, GAMMA),
        section("distilled", setting, setting.distilled, LONG),
    ]
    every: list[Seen] = []
    with engines(sides, setting.work) as running:
        for temperature in TEMPERATURES:
            every += _at(report, setting, running, temperature)
    report.put("counters_equal", sum(one.counts == one.own_counts for one in every) / len(every))
    report.goal("counters_equal", ">=", 1.0)
    report.setup.update(
        gamma=LONG, short_gamma=GAMMA, max_new_tokens=MAX_TOKENS, alone=ALONE, turns=TOGETHER, at_once=8
    )
    return report


def _at(report: Report, setting: Setting, running: dict[str, Engine], temperature: float) -> list[Seen]:
    """One temperature's figures; returns all that was seen."""
    take_turns(running, [Job(setting.some(2, 0), 2, temperature, MAX_TOKENS)])
    alone = take_turns(running, [Job(setting.some(1, i), 1, temperature, MAX_TOKENS) for i in range(ALONE)])
    together = take_turns(running, [Job(setting.some(16, i), 8, temperature, MAX_TOKENS) for i in range(TOGETHER)])
    seen = {name: alone[name] + together[name] for name in _SIDES}
    key = f"t{temperature:.0f}"
    efficiency = {name: [one.counts.block_efficiency or 1.0 for one in seen[name]] for name in _SIDES}
    report.put_ratio(
        f"distilled_block_efficiency_gain_{key}", efficiency["distilled"], efficiency["undistilled"], at_least=1.10
    )
    rates = {name: [one.rate for one in seen[name]] for name in _SIDES}
    better = min(_SIDES[:2], key=lambda name: median(_ratios(rates["distilled"], rates[name])))
    report.put_ratio(f"distilled_throughput_gain_{key}", rates["distilled"], rates[better], at_least=1.10)
    report.put(f"undistilled_gamma_{key}", GAMMA if better == "undistilled_short" else LONG)
    for name in _SIDES:
        counts = sum((one.counts for one in seen[name]), Counts())
        report.put(f"{name}_block_efficiency_{key}", counts.block_efficiency)
        report.put(f"{name}_acceptance_rate_{key}", counts.acceptance_rate)
        for batch, part in ((1, alone), (8, together)):
            report.put(f"{name}_tokens_per_s_{key}_b{batch}", median(one.rate for one in part[name]))
    return [one for name in _SIDES for one in seen[name]]


def _ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(mine, theirs, strict=True)]
