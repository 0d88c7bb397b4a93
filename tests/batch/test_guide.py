"""``gkt guide``: the teacher is asked ahead of time, once, and what comes later finds what it said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.accounting.records import read_records
from gkt_plugins.cli import main

CACHE = "[cache]\n"


@pytest.fixture
def guide(fakes: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """``gkt guide -i in.jsonl --json …``; its exit code and its summary, if it got that far."""
    with Path("gkt.toml").open("a") as file:
        file.write(CACHE)

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            main(["guide", "-i", "in.jsonl", "--json", *arguments])
        said = capsys.readouterr()
        print(said.err, end="")
        assert isinstance(ended.value.code, int)
        return ended.value.code, json.loads(said.out) if said.out else {}

    return run


def counts(summary: dict[str, Any]) -> dict[str, int]:
    """Those that are not 0, without the total."""
    names = ("known", "asked", "failed", "repeated", "unguided", "drawn")
    return {name: summary[name] for name in names if summary[name]}


def test_requests_that_come_later_find_their_guidance_and_their_teacher_costs_nothing(
    fakes, guide, gkt_run, chat, write, rows
):
    write(chat("a"), chat("b", "When?", n=2), chat("c", "Who?", max_tokens=7))
    assert counts(guide()[1]) == {"asked": 3}
    assert {call.sampling.max_tokens for call in fakes.calls} == {3}
    fakes.calls.clear()
    assert gkt_run() == 0
    for row in rows().values():
        assert row["response"]["body"]["gkt"]["cached"] is True
        assert row["response"]["body"]["choices"][0]["message"]["content"] == "So it is. Truly edge."
    assert all(call.prefix for call in fakes.calls)  # students only
    teacher = [record for record in read_records("sqlite:///gkt.db") if record.role == "teacher"]
    assert sorted((record.pipeline, record.cost_nano == 0) for record in teacher) == [
        ("default", True),
        ("default", True),
        ("default", True),
        ("default (ahead)", False),
        ("default (ahead)", False),
        ("default (ahead)", False),
    ]


def test_it_says_what_it_asked_and_what_that_cost(fakes, guide, chat, write):
    write(chat("a"))
    code, summary = guide()
    assert (code, summary["prompts"]) == (0, 1)
    [group] = summary["usage"]["groups"]
    assert (group["model"], group["calls"]) == ("cloud-model", 1)
    assert group["cost"] == {"USD": "0.000032"}  # 1 token in at 2.00, 3 out at 10.00 per million


def test_a_second_run_asks_only_for_what_is_missing(fakes, guide, chat, write):
    write(chat("a"), chat("b", "When?"))
    guide()
    write(chat("a"), chat("c", "Who?"), chat("b", "When?"))
    assert counts(guide()[1]) == {"known": 2, "asked": 1}
    assert fakes.asked == ["Why?", "When?", "Who?"]


def test_prompts_that_have_no_guidance_to_keep_are_counted_and_not_asked(fakes, guide, chat, write):
    write(
        chat("a"),
        chat("again"),
        chat("drawn", temperature=0.7),
        chat("seeded", temperature=0.7, seed=1),
        chat("alone", model="gkt/alone"),
        chat("none", model="gkt/default@g=0"),
        chat("tools", tools=[{"type": "function", "function": {"name": "f"}}]),
    )
    code, summary = guide()
    assert code == 0
    assert counts(summary) == {"asked": 2, "repeated": 1, "drawn": 1, "unguided": 3}
    assert len(fakes.calls) == 2


def test_a_teacher_that_fails_is_named_with_its_line_and_the_rest_is_done(fakes, guide, chat, write):
    write(chat("a"), chat("b", "Please fail."), "no json")
    code, summary = guide()
    assert code == 1
    assert counts(summary) == {"asked": 1, "failed": 2}
    assert [(failure["line"], failure["custom_id"]) for failure in summary["failures"]] == [(2, "b"), (3, None)]
    assert "out of order" in summary["failures"][0]["error"]
    assert not any(call.prefix for call in fakes.calls)


def test_where_nothing_can_be_kept_the_exit_code_is_2(fakes, guide, chat, write):
    write(chat("b", "Please fail."))
    assert guide()[0] == 2


def test_one_pipeline_may_guide_every_line_whatever_its_model(fakes, guide, chat, write):
    write(chat("a", model="gpt-x"), chat("b", "When?", model="gkt/alone"))
    assert counts(guide("--pipeline", "default")[1]) == {"asked": 2}


def test_guidance_that_would_break_the_budget_of_the_day_is_not_asked_for(fakes, guide, chat, write):
    with Path("gkt.toml").open("a") as file:
        file.write('[budget]\nper_day = "0.0002"\n')
    write(*(chat(f"line {i}", f"Why {i}?") for i in range(10)))
    code, summary = guide("--concurrency", "1")
    assert code == 1
    assert 0 < summary["asked"] < 10
    assert {failure["error"] for failure in summary["failures"]} <= {
        "the budget of the day has no room for this guidance; go on tomorrow (UTC), or raise [budget] per_day"
    }
    spent = sum(record.cost_nano or 0 for record in read_records("sqlite:///gkt.db"))
    assert 0 < spent <= 200_000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--pipeline", "nobody"),
            "there is no pipeline 'nobody'; [pipelines.NAME] sections that exist: ",
        ),
        (("--pipeline", "alone"), "the pipeline 'alone' has no teacher to ask; name another with --pipeline"),
        (("-i", "missing.jsonl"), "cannot be read"),
        (("--set", 'cache.url="sqlite:///nowhere/guidance.db"'), "the guidance cache at "),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(fakes, guide, chat, write, capsys, arguments, sentence):
    write(chat("a"))
    assert guide(*arguments)[0] == 2
    said = capsys.readouterr().out
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_without_a_cache_there_is_nothing_to_fill(fakes, chat, write, capsys):
    write(chat("a"))
    with pytest.raises(SystemExit):
        main(["guide", "-i", "in.jsonl"])
    assert capsys.readouterr().err == (
        "error: gkt guide fills the guidance cache, and the configuration has none; add a [cache] section\n"
    )


def test_a_cache_that_cannot_be_written_is_not_called_filled(fakes, guide, chat, write, monkeypatch):
    from gkt_plugins.guidance.cache_sqlite import SqliteStore

    async def full(self: SqliteStore, values: object, max_age_s: int | None) -> None:
        if values != {"check": b""}:
            raise OSError("no space left on device")

    monkeypatch.setattr(SqliteStore, "put", full)
    write(chat("a"))
    assert guide()[0] == 2


def test_the_table_for_people_names_every_count(fakes, guide, chat, write, capsys):
    write(chat("a"), chat("drawn", temperature=0.7))
    with pytest.raises(SystemExit):
        main(["guide", "-i", "in.jsonl"])
    said = capsys.readouterr().out
    for word in ("prompts", "known", "asked", "failed", "repeated", "unguided", "drawn", "cloud-model"):
        assert word in said
    assert "ask for temperature 0, or give a seed" in said
