"""``gkt run``: a file of prompts in, a file of answers out, and an exit code that can be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins import plugins as plugins_module
from gkt_plugins.cli import main
from gkt_plugins.contracts import BuildContext, Call, Engine, Factory, Options
from gkt_plugins.errors import ConfigError, EngineError
from gkt_plugins.guidance.answers import Answer, Choice
from gkt_plugins.guidance.rows import AnswerFile, answer_row, read_rows
from gkt_plugins.hookspecs import hookimpl
from gkt_plugins.testing.engines import Script, ScriptedEngine
from gkt_plugins.testing.plugins import plugins_from

TOML = """
[engines.cloud]
adapter = "fake"
[engines.edge]
adapter = "fake"
[prices.cloud-model]
input_per_million = "2.00"
output_per_million = "10.00"
[prices.edge-model]
input_per_million = "0.20"
output_per_million = "1.00"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = 3
"""


class Fakes:
    """Engines that answer ``So it is. Truly NAME.``, and fail on prompts that say ``fail``."""

    GKT_CONTRACT = 1

    def __init__(self) -> None:
        self.asked: list[str] = []

    @hookimpl
    def gkt_engines(self) -> dict[str, Factory[Engine]]:
        def build(options: Options, context: BuildContext) -> Engine:
            def script(call: Call) -> Script:
                question = call.prompt.text or call.prompt.messages[-1].content
                self.asked.append(question)
                if "fail" in question:
                    return Script("", fails_after=0)
                return Script(f"So it is. Truly {context.name}.".removeprefix(call.prefix))

            return ScriptedEngine(script, name=context.name, model=f"{context.name}-model")

        return {"fake": Factory(build)}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fakes:
    made = Fakes()
    given = plugins_from(made)
    monkeypatch.setattr(plugins_module, "load_plugins", lambda **_: given)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gkt.toml").write_text(TOML)
    return made


def gkt_run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_every_prompt_of_a_text_file_gets_its_answer_and_the_exit_code_is_0(fakes, capsys):
    Path("prompts.txt").write_text("Why?\n\nWhen?\n")
    assert gkt_run("prompts.txt", "--output", "answers.jsonl", "--json") == 0
    [first, second] = sorted(lines("answers.jsonl"), key=lambda row: row["id"])
    assert (first["id"], second["id"]) == (1, 3)
    assert first["text"] == "So it is. Truly edge."
    assert first["guidance"] == "So it"
    assert (first["finish_reason"], first["notes"]) == ("stop", [])
    assert first["usage"]["teacher"]["completion_tokens"] == 3
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["answered"], summary["guided"], summary["failed"]) == (2, 2, 2, 0)
    [comparison] = summary["usage"]["teacher_alone"]["comparisons"]
    assert comparison["requests"] == 2


def test_json_rows_may_hold_a_prompt_messages_or_raw_text_and_an_id_of_their_own(fakes):
    rows = [
        {"id": "a", "prompt": "Why?", "answer": "kept out of it"},
        {"id": 7, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "When?"}]},
        {"text": "Q: Who?\nA:"},
    ]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert gkt_run("prompts.jsonl", "-o", "answers.jsonl") == 0
    assert {row["id"] for row in lines("answers.jsonl")} == {"a", 7, 3}
    assert set(fakes.asked) == {"Why?", "When?", "Q: Who?\nA:"}


def test_bad_rows_are_named_with_exit_code_1_and_the_good_ones_are_answered(fakes, capsys):
    Path("p.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": ""}\nnonsense\n{"prompt": "please fail"}\n{"id": 1.5}\n')
    assert gkt_run("p.jsonl", "-o", "a.jsonl") == 1
    rows = {row["id"]: row for row in lines("a.jsonl")}
    assert rows[1]["text"] == "So it is. Truly edge."
    assert rows[2]["error"] == "the prompt is empty; give it at least one word"
    assert rows[3]["error"].startswith("line 3 must be a JSON object, and cannot be parsed")
    assert "edge failed as its script says" in rows[4]["error"]
    assert rows[5]["error"] == "line 5: id must be a text or an integer, got 1.5"
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert "error: row 2: the prompt is empty; give it at least one word" in errors


def test_nothing_answered_is_exit_code_2(fakes):
    Path("p.txt").write_text("fail\n")
    assert gkt_run("p.txt", "-o", "a.jsonl") == 2


def test_a_second_run_answers_only_what_the_first_did_not(fakes, capsys):
    Path("p.txt").write_text("Why?\nfail\nWhen?\n")
    assert gkt_run("p.txt", "-o", "a.jsonl") == 1
    fakes.asked.clear()
    Path("p.txt").write_text("Why?\nfixed\nWhen?\n")
    assert gkt_run("p.txt", "-o", "a.jsonl", "--json") == 0
    assert set(fakes.asked) == {"fixed"}
    assert sorted(row["id"] for row in lines("a.jsonl")) == [1, 2, 3]
    assert not any("error" in row for row in lines("a.jsonl"))


def test_a_line_that_a_killed_run_left_half_written_is_run_again(fakes):
    Path("p.txt").write_text("Why?\nWhen?\n")
    assert gkt_run("p.txt", "-o", "a.jsonl") == 0
    whole = Path("a.jsonl").read_text()
    Path("a.jsonl").write_text(whole[:-20])
    fakes.asked.clear()
    assert gkt_run("p.txt", "-o", "a.jsonl") == 0
    assert len(set(fakes.asked)) == 1
    assert sorted(row["id"] for row in lines("a.jsonl")) == [1, 2]


def test_the_table_shows_rows_tokens_by_role_and_the_estimate_of_the_teacher_alone(fakes, capsys):
    Path("p.txt").write_text("Why?\n")
    assert gkt_run("p.txt", "-o", "a.jsonl", "--temperature", "0.5", "--max-tokens", "5", "--n", "2") == 0
    out = capsys.readouterr().out
    assert "guided" in out
    assert "teacher" in out
    assert "USD" in out
    [row] = lines("a.jsonl")
    assert len(row["choices"]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.jsonl", "-o", "a.jsonl"], "the prompts 'none.jsonl' cannot be read as UTF-8 text"),
        (["empty.txt", "-o", "a.jsonl"], "'empty.txt' holds no prompts; write one a line"),
        (["p.txt", "-o", "p.txt"], "--output names the prompts themselves, 'p.txt'; name another file"),
        (["p.txt", "-o", "nowhere/a.jsonl"], "the answers 'nowhere/a.jsonl' cannot be written"),
        (["twice.jsonl", "-o", "a.jsonl"], "'twice.jsonl' uses the id 'x' in lines 1 and 2; give every row its own"),
        (["p.txt", "-o", "other.md"], "'other.md' is no file of answers, see its line 1; name another with --output"),
        (["p.txt", "-o", "a.jsonl", "--pipeline", "x"], "there is no pipeline 'x'"),
        (["p.txt", "-o", "a.jsonl", "--set", "pipelines.default.guidance.tokens=-1"], "guidance.tokens"),
        (
            ["p.txt", "-o", "a.jsonl", "--temperature", "1", "--set", "pipelines.default.guidance.preset=paper-aqua"],
            "--temperature has no effect beside guidance.preset, which fixes it; remove one of them",
        ),
    ],
)
def test_what_cannot_be_run_is_one_sentence_and_exit_code_2(fakes, capsys, arguments, sentence):
    Path("p.txt").write_text("Why?\n")
    Path("empty.txt").write_text("\n\n")
    Path("twice.jsonl").write_text('{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}\n')
    Path("other.md").write_text("# Notes\nA line.\n")
    assert gkt_run(*arguments) == 2
    assert sentence in capsys.readouterr().err
    assert Path("p.txt").read_text() == "Why?\n"
    assert fakes.asked == []


def test_rows_that_are_no_prompts_say_what_was_expected(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('[1]\n{"prompt": "a", "text": "b"}\n{"id": 3}\n{"messages": []}\n{"prompt": 5}\n')
    assert [row.error for row in read_rows(path)] == [
        "line 1 must be a JSON object, got list",
        "line 2 must have one of prompt, messages and text, got prompt and text",
        "line 3 must have one of prompt, messages and text, got none of them",
        'line 4: messages must be a list of {"role": text, "content": text}',
        "line 5: prompt must be a text, got int",
    ]


def test_an_answer_is_in_the_file_as_soon_as_it_is_added(tmp_path):
    path = tmp_path / "a.jsonl"
    with AnswerFile(path) as file:
        file.add({"id": 1, "text": "日本\u2028"})
        assert json.loads(path.read_text(encoding="utf-8"))["text"] == "日本\u2028"
    with AnswerFile(path) as file:
        assert file.answered == {1}


def test_a_choice_that_failed_keeps_what_was_released_beside_its_error():
    failed = Choice("The cat", "The", None, error=EngineError("down"))
    row = answer_row("a", Answer("r", (failed, Choice("The dog.", "The", "stop"))))
    assert row["error"] == "down"
    assert [choice["text"] for choice in row["choices"]] == ["The cat", "The dog."]


def test_a_file_of_answers_in_another_encoding_is_not_overwritten(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xff\xfe{\x00\n\x00")
    with pytest.raises(ConfigError, match="is no file of answers"):
        AnswerFile(path)
    assert path.read_bytes() == b"\xff\xfe{\x00\n\x00"
