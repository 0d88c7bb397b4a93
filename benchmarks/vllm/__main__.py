"""What the plugin costs and brings inside vLLM, on a CPU, with the packaged models.

Run by the Python that has vLLM: ``.venv-vllm/bin/python -m benchmarks.vllm``. The parts are the modules of this
package: off, speculation, distilled, guided. A full run (15 minutes on 2 idle cores) writes ``vllm.json`` and
``vllm.md`` to ``--results``; ``--quick`` (off, and on against vLLM's own drafts; 5 minutes) and ``--only`` print the
object alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks._report import Report, arguments
from benchmarks.vllm import distilled, guided, off, speculation
from benchmarks.vllm._page import page
from benchmarks.vllm._setting import PACKAGES, Setting

PARTS: Mapping[str, Callable[[Setting], Report]] = {
    "off": off.run,
    "speculation": speculation.run,
    "distilled": distilled.run,
    "guided": guided.run,
}
QUICK = ("off", "speculation")


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__ or "", argv, more=_more, torch=False)
    if find_spec("vllm") is None:
        sys.exit("benchmarks.vllm: this Python has no vLLM; run: make integration, then .venv-vllm/bin/python")
    merged = Report("vllm", options.quick, packages=PACKAGES)
    with tempfile.TemporaryDirectory() as work:
        setting = Setting(options.quick, Path(work))
        for name in options.only or (QUICK if options.quick else PARTS):
            print(f"benchmarks.vllm: {name}", file=sys.stderr, flush=True)
            part = PARTS[name](setting)
            merged.figures.update(part.figures)
            merged.intervals.update(part.intervals)
            merged.goals.update(part.goals)
            merged.setup[name] = {**part.setup, "figures": list(part.figures)}
    merged.setup.update(processors=os.cpu_count(), python=platform.python_version(), threads=1)
    keep = not options.quick and not options.only
    merged.finish(json_only=options.json, output=options.results / "vllm.json" if keep else options.output)
    if keep:
        (options.results / "vllm.md").write_text(page(merged.payload()))


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=list(PARTS), action="append", help="run this part; may be given again")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="where a full run writes")


if __name__ == "__main__":
    main()
