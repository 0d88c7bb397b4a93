"""How far a batch is: counts, time left, money so far; on a terminal and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from gkt_plugins.batch.outcomes import Outcome
from gkt_plugins.batch.progress import EVERY_S, BatchProgress
from gkt_plugins.batch.summary import Summary
from gkt_plugins.contracts import UsageRecord


def record(cost_nano: int | None, currency: str = "USD") -> UsageRecord:
    return UsageRecord("r", 0, "student", 0, "edge", "small", "final", cost_nano=cost_nano, currency=currency)


def outcome(number: int, *records: UsageRecord, error: str = "") -> Outcome:
    return Outcome(number, f"q{number}", b"{}\n", error, guided=not error, records=records)


def test_money_is_added_per_currency_and_what_is_unknown_is_told_apart_never_as_zero():
    summary = Summary(lines=9)
    assert summary.money == "no money"
    summary.add(outcome(1, record(1_250_000), record(49_999)))
    assert summary.money == "USD 0.0013"
    summary.add(outcome(2, record(2_000_000_000, "EUR"), record(None), record(None)))
    assert summary.money == "EUR 2.0000 + USD 0.0013 + 2 calls of unknown price"


def test_the_exit_code_says_whether_all_some_or_none_of_the_lines_have_their_answer():
    summary = Summary(lines=2)
    summary.add(outcome(1, error="down"))
    assert summary.exit_code == 2
    summary.add(outcome(2))
    assert summary.exit_code == 1
    assert Summary(lines=1).exit_code == 0
    kept = Summary(lines=2, kept=1)
    kept.add(outcome(2, error="down"))
    assert kept.exit_code == 1


def test_the_summary_names_failures_in_the_order_of_the_input():
    summary = Summary(lines=3)
    for number in (3, 1, 2):
        summary.add(outcome(number, error="" if number == 2 else f"down {number}"))
    assert summary.as_json()["failures"] == [
        {"line": 1, "custom_id": "q1", "error": "down 1"},
        {"line": 3, "custom_id": "q3", "error": "down 3"},
    ]
    assert (summary.answered, summary.guided, summary.done) == (1, 1, 3)


def test_a_log_gets_a_line_now_and_then_with_time_left_at_this_run_s_pace_and_the_money_so_far():
    now = [100.0]
    summary = Summary(lines=100, kept=40)
    out = io.StringIO()
    with BatchProgress(summary, console=Console(file=out, width=40), clock=lambda: now[0]) as progress:
        now[0] += 1000  # engines took long to load, which is no measure of pace
        progress.answering()
        for number in range(10):
            summary.add(outcome(number, record(1_000_000_000), error="down" if number == 0 else ""))
            now[0] += EVERY_S / 8
            progress.advance()
    assert out.getvalue().splitlines() == ["48 of 100 lines, about 0:03:15 left, USD 8.0000 so far, 1 failed"]


def test_a_terminal_gets_a_bar_with_counts_time_left_and_money():
    summary = Summary(lines=4, kept=1)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with console.capture() as capture, BatchProgress(summary, console=console) as progress:
        progress.answering()
        summary.add(outcome(2, record(1_500_000)))
        progress.advance()
    shown = capture.get()
    assert "Answering" in shown
    assert "2/4" in shown
    assert "USD 0.0015 so far" in shown
