"""What works where, in docs/vllm.md, is what the tests said on each release of vLLM, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "integration_tests" / "vllm"


@pytest.fixture(scope="module")
def matrix() -> Any:
    spec = importlib.util.spec_from_file_location("vllm_matrix", FOLDER / "matrix.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" timestamp="2026-11-22T06:58:36.1+00:00" hostname="h">
<testcase classname="integration_tests.vllm.test_leniency" name="test_a[0.5]" time="1.0" />
<testcase classname="integration_tests.vllm.test_leniency.TestGroup" name="test_b" time="1.0" />
<testcase classname="integration_tests.vllm.test_leniency" name="test_c"><skipped type="pytest.skip" /></testcase>
<testcase classname="integration_tests.vllm.test_counters" name="test_d"><failure message="no">x</failure></testcase>
<testcase classname="" name="integration_tests.vllm.test_export"><error message="collection failure" /></testcase>
</testsuite></testsuites>
"""


def ran(passed: int = 1, failed: int = 0) -> dict[str, Any]:
    return {"passed": passed, "failed": failed, "date": "2026-11-22"}


def test_the_page_has_the_table_that_the_kept_results_make(matrix):
    page = matrix.PAGE.read_text(encoding="utf-8")
    assert matrix.with_table(page, json.loads(matrix.RESULTS.read_text())) == page


def test_every_test_file_is_in_one_row(matrix):
    files = sorted(file.stem.removeprefix("test_") for file in FOLDER.glob("test_*.py"))
    assert sorted(test for row in matrix.ROWS for test in row.tests) == files


def test_what_pytest_said_is_counted_by_file_and_release(matrix, tmp_path):
    (tmp_path / "0.31.xml").write_text(JUNIT)
    (tmp_path / "0.32-first.xml").write_text(JUNIT.replace("test_leniency", "test_acceptance"))
    (tmp_path / "0.32-second.xml").write_text(JUNIT)
    results = matrix.read(tmp_path)
    assert results["0.31"] == {"leniency": ran(2), "counters": ran(0, 1), "export": ran(0, 1)}
    assert sorted(results["0.32"]) == ["acceptance", "counters", "export", "leniency"]


def test_a_folder_without_results_is_an_error(matrix, tmp_path):
    with pytest.raises(ValueError, match="found none"):
        matrix.read(tmp_path)


def test_new_results_go_over_old_ones_and_files_that_are_gone_are_dropped(matrix):
    old = {"0.31": {"leniency": ran(1), "gone": ran(1)}, "0.28": {"counters": ran(3)}}
    new = {"0.31": {"leniency": ran(5)}}
    assert matrix.merged(old, new, {"leniency", "counters"}) == {
        "0.28": {"counters": ran(3)},
        "0.31": {"leniency": ran(5)},
    }


def test_the_table_says_what_passed_what_failed_what_did_not_run_and_what_is_not_there(matrix):
    results = {
        "0.28": {"leniency": ran(7), "counters": ran(3, 1)},
        "0.32": {"leniency": ran(8), "ways_in": ran(2), "second_runner": ran(4)},
    }
    lines = matrix.table(results).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines if line.startswith("|")}
    by_test = {test: cells[row.promise] for row in matrix.ROWS for test in row.tests}
    assert by_test["leniency"][:2] == ["✓ 7", "✓ 8"]
    assert by_test["counters"][:2] == ["✗ 1 of 4", "not run"]
    assert by_test["second_runner"] == ["–", "✓ 4", "V2 |"]
    assert by_test["ways_in"][:2] == ["not run", "not run"]  # the row has another file too
    assert "25 runs of tests on CPU builds, 2026-11-22." in lines[-1]


def test_a_page_without_the_marks_is_an_error(matrix):
    with pytest.raises(ValueError, match="put them around the table"):
        matrix.with_table("# vLLM\n", {})
