"""What the gateway costs, on loopback, with an upstream that answers after a fixed delay.

The parts are the modules of this package: latency, throughput, streams, ledger. A full run (about 12 minutes) writes
``gateway.json`` and ``gateway.md`` to ``--results``; ``--quick`` (4 minutes) and ``--only`` print the object alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks._report import Report, arguments
from benchmarks.gateway import latency, ledger, streams, throughput
from benchmarks.gateway._page import page
from benchmarks.gateway._setting import Setting

PARTS: Mapping[str, Callable[[Setting], Report]] = {
    "latency": latency.run,
    "throughput": throughput.run,
    "streams": streams.run,
    "ledger": ledger.run,
}
_FILES = 8192
"""Open at once: 2,000 streams are 2,000 connections of the generator and twice as many of the gateway."""


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__ or "", argv, more=_more, torch=False)
    if not options.litellm.exists():
        sys.exit(f"benchmarks.gateway: there is no {options.litellm}; run: make .venv-litellm/.ready")
    _allow_files()
    packages = ("gkt-plugins", "httpx2", "starlette", "uvicorn", "uvloop", "SQLAlchemy")
    merged = Report("gateway", options.quick, packages=packages)
    with tempfile.TemporaryDirectory() as work:
        merged.setup["disk_sync_ms"] = _disk_sync_ms(Path(work))
        setting = Setting(options.quick, Path(work), options.litellm.absolute())
        for name in options.only or PARTS:
            print(f"benchmarks.gateway: {name}", file=sys.stderr, flush=True)
            part = PARTS[name](setting)
            merged.figures.update(part.figures)
            merged.intervals.update(part.intervals)
            merged.goals.update(part.goals)
            merged.setup[name] = {**part.setup, "figures": list(part.figures)}
    if "throughput" in merged.setup:
        merged.setup["throughput"]["litellm_version"] = _litellm_version(options.litellm)
    merged.setup.update(processors=os.cpu_count(), python=platform.python_version())
    keep = not options.quick and not options.only
    merged.finish(json_only=options.json, output=options.results / "gateway.json" if keep else options.output)
    if keep:
        (options.results / "gateway.md").write_text(page(merged.payload()))


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=list(PARTS), action="append", help="run this part; may be given again")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="where a full run writes")
    parser.add_argument("--litellm", type=Path, default=Path(".venv-litellm/bin/litellm"), help="LiteLLM's command")


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FILES:
        wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _disk_sync_ms(folder: Path) -> float:
    """Median time until this disk has 4 kB for good."""
    seconds = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - began)
    return round(median(seconds) * 1000, 3)


def _litellm_version(command: Path) -> str:
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    python = command.with_name("python")
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
