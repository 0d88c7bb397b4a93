"""What distillation of a draft is worth: every figure with its interval, its baseline and what it was measured on.

The parts are the modules of this package: cells, wallclock, transfer, target_first, versus_trl, leniency, and planning,
which is a benchmark of its own. Each writes its figures to ``--results``; the object at the end holds those of all
parts that are there, also from earlier runs, each with its own date and setup. ``--quick`` trains one cell, sets 60
seconds of TRL against 60 seconds of ours, and evaluates the packaged drafts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks._report import Report, arguments
from benchmarks.distillation import cells, leniency, planning, target_first, transfer, versus_trl, wallclock
from benchmarks.distillation._setting import Setting, load_part, quiet, save_part

PARTS: Mapping[str, Callable[[Setting], Report]] = {
    "cells": cells.run,
    "wallclock": wallclock.run,
    "transfer": transfer.run,
    "target_first": target_first.run,
    "versus_trl": versus_trl.run,
    "leniency": leniency.run,
    "planning": planning.run,
}
QUICK = ("cells", "wallclock", "versus_trl")


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__ or "", argv, more=_more)
    quiet()
    names = options.only or (QUICK if options.quick else tuple(PARTS))
    merged = Report("distillation", options.quick)
    results = options.results / "quick" if options.quick else options.results  # what is quick replaces nothing
    with tempfile.TemporaryDirectory() as work:
        setting = Setting(
            quick=options.quick,
            results=results,
            work=Path(work),
            threads=options.threads,
            workers=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            larger=options.larger,
            plain_target=options.plain_target,
            trl_python=options.trl_python,
        )
        for name in names:
            print(f"benchmarks.distillation: {name}", file=sys.stderr, flush=True)
            report = PARTS[name](setting)
            report.name = name
            save_part(report, setting.results)
    for name in PARTS:
        part = load_part(name, results)
        if part is None:
            continue
        merged.figures.update(part.figures)
        merged.intervals.update(part.intervals)
        merged.goals.update(part.goals)
        merged.setup[name] = {key: value for key, value in part.setup.items() if key != "rows"}
    merged.finish(json_only=options.json, output=options.output)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=list(PARTS), action="append", help="run this part; may be given again")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results/distillation"), help="figures, tables, plots"
    )
    parser.add_argument("--larger", type=Path, help="a larger target (python -m gkt_plugins.demo.train --only larger)")
    parser.add_argument("--plain-target", type=Path, help="the demo target before it got a wording of its own")
    parser.add_argument("--trl-python", type=Path, default=Path(".venv-trl/bin/python"), help="interpreter with TRL")


if __name__ == "__main__":
    main()
