"""Makes the table of what works where in ``docs/vllm.md`` from what pytest said on each release of vLLM.

``python integration_tests/vllm/matrix.py FOLDER`` reads ``FOLDER/RELEASE*.xml`` (pytest's ``--junitxml``), keeps what
they say in ``matrix.json`` beside this file, test file by test file, and writes the table. It ends with 1 if a test
failed.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

__all__ = ["NOT_THERE", "PAGE", "RESULTS", "ROWS", "Row", "merged", "read", "table", "with_table"]

HERE = Path(__file__).parent
RESULTS = HERE / "matrix.json"
PAGE = HERE.parents[1] / "docs" / "vllm.md"
BEGIN, END = "<!-- make matrix-vllm writes this table -->\n", "<!-- end of the table -->\n"

Results = dict[str, dict[str, dict[str, "int | str"]]]
"""Release → test file → ``passed``, ``failed`` and ``date``."""


class Row(NamedTuple):
    """One line of the table."""

    promise: str
    tests: Sequence[str]
    """Test files, without ``test_`` and ``.py``."""
    runner: str


ROWS = (
    Row("greedy answers are plain vLLM's, under every hook and pressure", ("greedy_equality",), "V1"),
    Row("sampled acceptance is that of our loop, whoever drafts", ("acceptance",), "V1"),
    Row("leniency: bounded, drift as in our loop, grammars kept", ("leniency",), "V1"),
    Row(
        "our own drafter: per request, switched off where it does not pay, traffic kept",
        ("own_drafter", "traffic"),
        "V1",
    ),
    Row("n-grams; drafts end at `largest_batch`", ("largest_batch",), "V1"),
    Row("drafts and leniency on the second runner, under Triton's interpreter", ("second_runner",), "V2"),
    Row(
        "guidance in the server, with the official client and two API servers",
        ("guided_server", "served_models"),
        "any",
    ),
    Row("vLLM's counters, our metrics and the ledger agree", ("counters",), "any"),
    Row("vLLM as an engine in this process, and a server elsewhere", ("offline_engine", "remote_server"), "any"),
    Row("`gkt export --to vllm`, and a server to distil from", ("export", "distill_from_server"), "any"),
    Row(
        "every way in; nothing without a section; bad input in one sentence",
        ("ways_in", "bad_input"),
        "any",
    ),
)

NOT_THERE = {("second_runner", "0.28")}
"""Left out of the tests there: that release's second runner has no draft models."""


def read(folder: Path) -> Results:
    """What the files in ``folder`` say. Skipped tests count as neither.

    :raises ValueError: there are none.
    """
    results: Results = defaultdict(dict)
    for file in sorted(folder.glob("*.xml")):
        release = file.stem.split("-")[0]
        [suite] = ElementTree.parse(file).getroot().iter("testsuite")
        counts: dict[str, dict[str, int | str]] = {}
        for case in suite.iter("testcase"):
            # A file that could not be collected is a case without a class, named like the file.
            module = (case.get("classname") or case.get("name") or "").split(".test_")[-1].split(".")[0]
            kinds = {child.tag for child in case}
            if "skipped" in kinds:
                continue
            counted = counts.setdefault(module, {"passed": 0, "failed": 0, "date": (suite.get("timestamp") or "")[:10]})
            key = "failed" if kinds & {"failure", "error"} else "passed"
            counted[key] = int(counted[key]) + 1
        results[release] |= counts
    if not results:
        raise ValueError(f"expected pytest's files RELEASE.xml in {folder}, found none; run make matrix-vllm")
    return dict(results)


def merged(old: Results, new: Results, known: set[str]) -> Results:
    """``new`` over ``old``, of the test files that there are."""
    return {
        release: {
            test: counts
            for test, counts in sorted((old.get(release, {}) | new.get(release, {})).items())
            if test in known
        }
        for release in sorted(old.keys() | new.keys())
    }


def table(results: Mapping[str, Mapping[str, Mapping[str, int | str]]]) -> str:
    """The table, and what its signs mean."""
    releases = sorted(results)
    lines = [f"| | {' | '.join(releases)} | runner |", "|---" * (len(releases) + 2) + "|"]
    for row in ROWS:
        cells = [_cell(results[release], row, release) for release in releases]
        lines.append(f"| {row.promise} | {' | '.join(cells)} | {row.runner} |")
    every = [counts for release in results.values() for counts in release.values()]
    dates = sorted({str(counts["date"]) for counts in every})
    total = sum(int(counts["passed"]) + int(counts["failed"]) for counts in every)
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lines += ["", f"✓ and how many tests passed; –: not in that release. {total} runs of tests on CPU builds, {when}."]
    return "\n".join(lines) + "\n"


def _cell(results: Mapping[str, Mapping[str, int | str]], row: Row, release: str) -> str:
    if all((test, release) in NOT_THERE for test in row.tests):
        return "–"
    if any(test not in results for test in row.tests):
        return "not run"
    failed = sum(int(results[test]["failed"]) for test in row.tests)
    total = failed + sum(int(results[test]["passed"]) for test in row.tests)
    return f"✗ {failed} of {total}" if failed else f"✓ {total}"


def with_table(page: str, results: Results) -> str:
    """``page`` with the table of ``results`` between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"expected {BEGIN.strip()!r} and {END.strip()!r} in docs/vllm.md; put them around the table")
    return before + BEGIN + table(results) + END + after


def main(folder: Path) -> int:
    known = {file.stem.removeprefix("test_") for file in HERE.glob("test_*.py")}
    old: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results = merged(old, read(folder), known)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(table(results))
    return int(any(counts["failed"] for release in results.values() for counts in release.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
