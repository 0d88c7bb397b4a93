"""``gkt plan`` against the wall clock: :mod:`benchmarks.planning`, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks._report import Report
from benchmarks.distillation._setting import Setting

__all__ = ["run"]


def run(setting: Setting) -> Report:
    """Its figures, intervals and setup; here with the goals of this benchmark."""
    report = Report("planning", setting.quick)
    words = [sys.executable, "-m", "benchmarks.planning", "--json", "--threads", str(setting.threads)]
    if setting.quick:
        words.append("--quick")
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    report.figures.update(found["figures"])
    report.intervals.update(found["intervals"])
    report.setup.update(found["setup"])
    for batch in (1, 4, 8):
        report.goal(f"planner_error_b{batch}", "<=", 0.10)
    report.goal("decisions_right", ">=", 1.0)
    return report
