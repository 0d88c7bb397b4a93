import asyncio
from pathlib import Path

import pytest
from rich.console import Console

from gkt_plugins.accounting.records import read_records
from gkt_plugins.demo.guided import GUIDANCE_TOKENS, Way, run_ways
from gkt_plugins.demo.problems import problems
from gkt_plugins.demo.show import show_guidance, show_problem, show_speculation
from gkt_plugins.demo.speculated import DRAFTS, Comparison, compare

HELD_OUT = list(problems(7_000, 6, split="test"))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "gkt.db"


@pytest.fixture(scope="module")
def ways(ledger: Path) -> list[Way]:
    return asyncio.run(run_ways(HELD_OUT, ledger, on_start=lambda label: None, on_answer=lambda: None))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(HELD_OUT[:1], on_answer=lambda: None)


def test_every_way_answers_every_problem_and_only_guided_ones_begin_with_the_teacher_s_text(ways: list[Way]) -> None:
    assert [way.kind for way in ways] == ["student", *["guided"] * len(GUIDANCE_TOKENS), "teacher"]
    for way in ways:
        assert len(way.side.answers) == len(HELD_OUT)
        assert all(bool(answer.guidance) == (way.kind == "guided") for answer in way.side.answers)
        assert all(answer.text.startswith(answer.guidance) for answer in way.side.answers)


def test_the_teacher_writes_no_more_than_g_tokens_and_costs_rise_with_g(ways: list[Way]) -> None:
    guided = [way for way in ways if way.kind == "guided"]
    for tokens, way in zip(GUIDANCE_TOKENS, guided, strict=True):
        assert max(way.side.completion_tokens("teacher")) <= tokens
    costs = [way.cost for way in guided]
    assert costs == sorted(costs)


def test_the_ledger_holds_every_call_of_the_demo_with_its_price(ways: list[Way], ledger: Path) -> None:
    records = list(read_records(ledger))
    calls = sum(len(answer.records) for way in ways for answer in way.side.answers)
    assert len(records) == calls
    assert all(record.status == "final" for record in records)
    total = sum(sum(way.side.costs) for way in ways)
    assert sum(record.cost_nano or 0 for record in records) == total > 0


def test_speculation_writes_the_same_tokens_and_says_which_were_drafted(comparison: Comparison) -> None:
    assert (comparison.prompts, comparison.differing) == (1, 0)
    for draft in comparison.drafts.values():
        assert draft.counts.accepted > 0
        assert any(drafted for _, drafted in draft.pieces)
        assert any(not drafted for _, drafted in draft.pieces)
        assert "".join(text for text, _ in draft.pieces).startswith("Plan:")


def test_the_distilled_draft_gets_more_accepted_than_the_one_it_started_from(comparison: Comparison) -> None:
    before, after = (comparison.drafts[name].counts.block_efficiency for name in DRAFTS)
    assert before is not None
    assert after is not None
    assert after > before


def test_the_tables_fit_eighty_columns(ways: list[Way], comparison: Comparison) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - rich keeps it
    show_guidance(console, ways)
    show_problem(console, HELD_OUT[0].question, ways[1].side.answers[0], ways[0].side.answers[0].text, 1)
    show_speculation(console, comparison)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    for way in ways:
        assert way.label in shown
