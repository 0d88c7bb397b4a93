"""What the plugin costs and brings inside vLLM, on a CPU, with the packaged models.

Run by the Python that has vLLM: ``.venv-vllm/bin/python -m benchmarks.vllm``. The parts are the modules of this
package: off, speculation, distilled, guided. A full run (17 minutes on 2 idle cores) writes ``vllm.json`` and
``vllm.md`` to ``--results``; ``--quick`` (off, and on against vLLM's own drafts; 5 minutes) and ``--only`` print the
object alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from benchmarks._report import Report, arguments
from benchmarks.vllm import distilled, guided, off, speculation
from benchmarks.vllm._page import page
from benchmarks.vllm._setting import PACKAGES, Models, Setting

PARTS: Mapping[str, Callable[[Setting], Report]] = {
    "off": off.run,
    "speculation": speculation.run,
    "distilled": distilled.run,
    "guided": guided.run,
}
QUICK = ("off", "speculation")


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__ or "", argv, more=_more, torch=False)
    if (options.target is None) != (options.draft is None):
        sys.exit("benchmarks.vllm: --target and --draft go together; give both, or none for the packaged models")
    models = Models(options.target, options.draft, options.distilled) if options.target else None
    names = options.only or (QUICK if options.quick else [name for name in PARTS if _can(name, models)])
    if wrong := [name for name in names if not _can(name, models)]:
        sys.exit(f"benchmarks.vllm: {wrong[0]} {_NEEDS[wrong[0]]}")
    if find_spec("vllm") is None:
        sys.exit("benchmarks.vllm: this Python has no vLLM; run: make .venv-vllm/.ready, then .venv-vllm/bin/python")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    merged = Report("vllm", options.quick, packages=PACKAGES)
    with tempfile.TemporaryDirectory() as work:
        setting = Setting(options.quick, Path(work), models, options.engine_arguments)
        for name in names:
            print(f"benchmarks.vllm: {name}", file=sys.stderr, flush=True)
            begun = time.monotonic()
            part = PARTS[name](setting)
            merged.figures.update(part.figures)
            merged.intervals.update(part.intervals)
            merged.goals.update(part.goals)
            merged.setup[name] = {
                **part.setup,
                "figures": list(part.figures),
                "seconds": round(time.monotonic() - begun),
            }
    merged.setup.update(processors=os.cpu_count(), python=platform.python_version(), engine_threads=1)
    if models:
        merged.setup.update(models=asdict(models), engine_arguments=options.engine_arguments)
    keep = names == list(PARTS) and not options.quick
    merged.finish(json_only=options.json, output=options.results / "vllm.json" if keep else options.output)
    if keep:
        (options.results / "vllm.md").write_text(page(merged.payload()))


_NEEDS = {"distilled": "needs --distilled beside --target", "guided": "is measured with the packaged models only"}


def _can(name: str, models: Models | None) -> bool:
    """Whether a part can be run with these models."""
    return models is None or name in QUICK or (name == "distilled" and models.distilled is not None)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=list(PARTS), action="append", help="run this part; may be given again")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="where a full run writes")
    parser.add_argument("--target", help="another model than the packaged one, a folder or a name on the Hub")
    parser.add_argument("--draft", help="its draft; required with --target")
    parser.add_argument("--distilled", help="its draft after distillation")
    parser.add_argument(
        "--engine-arguments", type=json.loads, default={}, metavar="JSON", help="more of vLLM's own, for every engine"
    )


if __name__ == "__main__":
    main()
