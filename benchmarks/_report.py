"""What every benchmark shares: its arguments, taking turns, and one JSON object at the end."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gkt_plugins.evaluation.statistics import Estimate, median_estimate

__all__ = ["Report", "arguments", "take_turns"]

MIN_PAIRS = 7


def arguments(
    description: str,
    argv: Sequence[str] | None = None,
    *,
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    torch: bool = True,
) -> argparse.Namespace:
    """``--json`` (nothing but the object on standard output), ``--quick``, ``--threads``, ``--output FILE``.

    :param more: adds the options that only this benchmark has.
    :param torch: it computes with torch; otherwise there is no ``--threads``, and torch is not loaded.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: at most 5 minutes on 2 cores")
    if torch:
        parser.add_argument("--threads", type=int, default=_threads(), help="torch threads")
    parser.add_argument("--output", type=Path, help="also write the JSON object to this file")
    more(parser)
    options = parser.parse_args(argv)
    if torch:
        importlib.import_module("torch").set_num_threads(options.threads)
    return options


def take_turns(sides: Mapping[str, Callable[[int], float]], turns: int) -> dict[str, list[float]]:
    """Seconds of every side in every turn, all sides of a turn one after the other, in rotating order.

    :param sides: name → function of the turn number that does the work and returns its seconds.
    :param turns: at least 7; a slow moment of the machine then meets all sides alike.
    """
    assert turns >= MIN_PAIRS, f"at least {MIN_PAIRS} interleaved pairs"
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [0.0] * turns for name in names}
    for turn in range(turns):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name][turn] = sides[name](turn)
    return seconds


@dataclass
class Report:
    """Figures, their intervals and the setup they were measured in."""

    name: str
    quick: bool
    figures: dict[str, float | int | str | None] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    goals: dict[str, tuple[str, float]] = field(default_factory=dict)
    setup: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ("gkt-plugins", "torch", "transformers")
    """Whose versions are told."""
    started: float = field(default_factory=time.time)

    def put(self, name: str, value: float | int | str | None) -> None:
        self.figures[name] = round(value, 4) if isinstance(value, float) else value

    def put_estimate(self, name: str, estimate: Estimate, *, at_least: float | None = None) -> None:
        """A figure with its interval. Against ``at_least``: reached, missed, or unresolved by the interval."""
        self.put(name, estimate.value)
        self.intervals[name] = [round(estimate.low, 4), round(estimate.high, 4)]
        if at_least is not None:
            self.goals[name] = (">=", at_least)

    def put_ratio(
        self, name: str, numerator: Sequence[float], denominator: Sequence[float], *, at_least: float | None = None
    ) -> None:
        """Median of the pairwise ratios of two sides that took turns."""
        ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
        self.put_estimate(name, median_estimate(ratios), at_least=at_least)

    def goal(self, name: str, sense: str, bound: float) -> None:
        """What the figure should be: ``>=`` or ``<=`` a bound."""
        self.goals[name] = (sense, bound)

    def verdicts(self) -> dict[str, str]:
        """Per goal: reached, missed or unresolved (the interval holds the bound)."""
        answers = {}
        for name, (sense, bound) in self.goals.items():
            value = self.figures[name]
            assert isinstance(value, (int, float)), name
            low, high = self.intervals.get(name, [value, value])
            holds = value >= bound if sense == ">=" else value <= bound
            sure = not low < bound < high
            answers[name] = f"{'reached' if holds else 'missed'}{'' if sure else ', unresolved'} ({sense} {bound})"
        return answers

    def payload(self) -> dict[str, Any]:
        """The JSON object."""
        self.setup.update(
            quick=self.quick,
            seconds=round(time.time() - self.started),
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            machine=_processor(),
            versions={name: version(name) for name in self.packages},
        )
        if "torch" in self.packages:
            self.setup["threads"] = _threads()
        return {
            "figures": self.figures,
            "intervals": self.intervals,
            "goals": self.verdicts(),
            "setup": self.setup,
        }

    def finish(self, *, json_only: bool, output: Path | None) -> None:
        """Print the report; the JSON object is the last thing on standard output."""
        payload = json.dumps(self.payload(), indent=1)
        if not json_only:
            verdicts = self.verdicts()
            table = Table(title=f"benchmarks.{self.name}")
            for column in ("figure", "value", "95 % interval", "goal"):
                table.add_column(column)
            for name, value in self.figures.items():
                low_high = self.intervals.get(name)
                between = f"{low_high[0]} – {low_high[1]}" if low_high else ""
                table.add_row(name, str(value), between, verdicts.get(name, ""))
            Console(file=sys.stderr).print(table)
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(payload + "\n")
        print(payload)


def _threads() -> int:
    return int(importlib.import_module("torch").get_num_threads())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
