"""What the plugin costs where it is installed and has no section: against vLLM that loads no plugin.

The model is the packaged teacher, as small as it is: the cheaper the model, the more the Python around it weighs.

- ``off_ratio``           tokens per second, installed / not loaded (``VLLM_PLUGINS=""``)
- ``off_ratio_no_stats``  the same with ``--disable-log-stats``
"""

from __future__ import annotations

from statistics import median

from benchmarks._report import Report
from benchmarks.vllm._engines import engines
from benchmarks.vllm._host import Job
from benchmarks.vllm._setting import NOT_INSTALLED, PACKAGES, Setting, side, take_turns

__all__ = ["run"]

BATCHES = {1: 3, 8: 24}
"""Requests in flight → prompts of a turn."""
MAX_TOKENS = 96


def run(setting: Setting) -> Report:
    """With vLLM's statistics and without."""
    report = Report("off", setting.quick, packages=PACKAGES)
    turns = 7 if setting.quick else 8
    sides = [
        side("absent", setting, setting.cheap, environment=NOT_INSTALLED),
        side("installed", setting, setting.cheap),
        side("absent_no_stats", setting, setting.cheap, environment=NOT_INSTALLED, disable_log_stats=True),
        side("installed_no_stats", setting, setting.cheap, disable_log_stats=True),
    ]
    jobs = [
        Job(setting.some(count, turn), at_once, 0.0, MAX_TOKENS)
        for turn in range(turns)
        for at_once, count in BATCHES.items()
    ]
    with engines(sides, setting.work) as running:
        take_turns(running, jobs[:2])
        seen = take_turns(running, jobs)
    rates = {name: [one.rate for one in every] for name, every in seen.items()}
    for suffix in ("", "_no_stats"):
        report.put_ratio(f"off_ratio{suffix}", rates[f"installed{suffix}"], rates[f"absent{suffix}"], at_least=0.98)
    for name, values in rates.items():
        for place, batch in enumerate(BATCHES):
            report.put(f"{name}_tokens_per_s_b{batch}", median(values[place :: len(BATCHES)]))
    report.setup.update(turns=turns, max_new_tokens=MAX_TOKENS, batches=list(BATCHES))
    return report
