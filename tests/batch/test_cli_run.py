"""``gkt run``: a file of requests in, a file of answers and one of errors out, and an exit code that can be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gkt_plugins.accounting.records import read_records, read_requests
from gkt_plugins.errors import BackendError


def test_every_line_gets_a_whole_openai_response_and_the_exit_code_is_0(fakes, gkt_run, chat, write, rows, capsys):
    write(chat("a"), "", chat("b", "When?", n=2, max_tokens=5))
    assert gkt_run("--json") == 0
    found = rows()
    assert found.keys() == {"a", "b"}
    row = found["a"]
    assert row["id"].startswith("batch_req_")
    assert row["error"] is None
    assert row["response"]["status_code"] == 200
    body = row["response"]["body"]
    assert row["response"]["request_id"] == body["id"]
    assert (body["object"], body["model"]) == ("chat.completion", "gkt/default")
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "So it is. Truly edge.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 5
    assert body["gkt"].items() >= {"route": "guided", "teacher": "cloud-model", "degraded": False}.items()
    assert body["gkt"]["cost"] is not None
    assert len(found["b"]["response"]["body"]["choices"]) == 2
    summary = json.loads(capsys.readouterr().out)
    wanted = {"lines": 2, "answered": 2, "guided": 2, "failed": 0, "failures": [], "answered_before": 0}
    assert summary.items() >= wanted.items()
    [comparison] = summary["usage"]["teacher_alone"]["comparisons"]
    assert comparison["requests"] == 2
    assert not Path("out.errors.jsonl").exists()


def test_completions_may_carry_several_prompts_and_come_back_as_one_row(fakes, gkt_run, write, rows):
    body = {"model": "gkt/default", "prompt": ["Q: Who?", "Q: What?"], "n": 2}
    write({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body})
    assert gkt_run() == 0
    choices = rows()["a"]["response"]["body"]["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert {choice["text"] for choice in choices} == {"So it is. Truly edge."}
    assert {call.prompt.text for call in fakes.calls} == {"Q: Who?", "Q: What?"}


def test_bodies_say_how_to_answer_model_and_key_how_much_guidance(fakes, gkt_run, chat, write, rows):
    write(
        chat("none", model="gkt/default@g=0"),
        chat("two", gkt={"guidance_tokens": 2}),
        chat("alone", model="gkt/alone"),
        chat("hot", "Hot?", temperature=0.7, max_completion_tokens=9, seed=4, stop="x"),
    )
    assert gkt_run() == 0
    told = {name: row["response"]["body"]["gkt"] for name, row in rows().items()}
    assert {name: gkt["guidance_tokens"] for name, gkt in told.items()} == {"none": 0, "two": 1, "alone": 0, "hot": 2}
    assert told["alone"]["teacher"] is None
    sampling = next(call.sampling for call in fakes.calls if call.prompt.messages[-1].content == "Hot?" and call.prefix)
    assert (sampling.temperature, sampling.max_tokens, sampling.seed, sampling.stop) == (0.7, 7, 4, ("x",))


def test_a_file_for_another_endpoint_runs_as_it_is_with_a_pipeline_named(fakes, gkt_run, chat, write, rows):
    other, without = chat("a", model="gpt-4o-mini"), chat("b")
    del without["body"]["model"]
    write(other, without)
    assert gkt_run("--pipeline", "default") == 0
    assert {row["response"]["body"]["model"] for row in rows().values()} == {"gpt-4o-mini", "gkt/default"}


BAD = [
    ("nonsense", None, "line 1 must be a JSON object, and cannot be parsed", "invalid_json_line"),
    ("[1]", None, "line 1 must be a JSON object, got list", "invalid_json_line"),
    ("[" * 100_000, None, "line 1 must be a JSON object, and cannot be parsed", "invalid_json_line"),
    ({"method": "POST"}, None, "line 1 must have a custom_id, a text of at most 512", "missing_required_parameter"),
    ({"custom_id": 5}, None, "got 5; give every line its own", "invalid_value"),
    ({"custom_id": ""}, None, "got an empty one", "invalid_value"),
    ({"custom_id": "a", "method": "GET"}, "a", "method must be \"POST\", got 'GET'", "invalid_method"),
    ({"custom_id": "a", "method": "POST", "url": "/v1/embeddings"}, "a", "url must be one of /v1/chat", "invalid_url"),
]


@pytest.mark.parametrize(("line", "custom_id", "sentence", "code"), BAD)
def test_a_bad_line_is_in_the_error_file_and_the_others_are_answered(
    fakes, gkt_run, chat, write, rows, line, custom_id, sentence, code
):
    write(line, chat("good"))
    assert gkt_run() == 1
    assert rows().keys() == {"good"}
    [row] = rows("out.errors.jsonl").values()
    assert row["custom_id"] == custom_id
    error = row["error"] if custom_id is None else row["response"]["body"]["error"]
    assert sentence in error["message"]
    assert error["code"] == code
    assert (row["response"] is None) == (custom_id is None)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"model": "gkt/none"}, 400, "the model 'gkt/none' is no pipeline; those that exist: gkt/default, gkt/alone"),
        ({"messages": []}, 400, "messages"),
        ({"temperature": 3}, 400, "temperature"),
        ({"stream": True}, 400, "a batch answers in one piece, so stream must be false; leave it out"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "the prompt is empty; give it at least one word"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "cannot serve tools, because its student"),
        ({"messages": [{"role": "user", "content": "please fail"}]}, 502, "out of order"),
    ],
)
def test_a_request_that_has_no_answer_has_a_response_that_says_why(
    fakes, gkt_run, chat, write, rows, capsys, body, status, sentence
):
    write(chat("good"), chat("bad", **body))
    assert gkt_run() == 1
    assert rows().keys() == {"good"}
    response = rows("out.errors.jsonl")["bad"]["response"]
    assert response["status_code"] == status
    assert sentence in response["body"]["error"]["message"]
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("error: line 2, 'bad': ")


def test_a_custom_id_used_twice_is_an_error_of_the_second_line_also_when_the_run_goes_on(
    fakes, gkt_run, chat, write, rows
):
    write(chat("a"), chat("a", "Again?"))
    for _ in range(2):
        assert gkt_run() == 1
        assert rows().keys() == {"a"}
        message = rows("out.errors.jsonl")["a"]["response"]["body"]["error"]["message"]
        assert message == "line 2 has the custom_id 'a' of line 1; give every line its own"
    assert set(fakes.asked) == {"Why?"}


def test_nothing_answered_is_exit_code_2(fakes, gkt_run, chat, write):
    write(chat("a", "fail"))
    assert gkt_run() == 2
    assert Path("out.jsonl").read_bytes() == b""


def test_a_second_run_answers_only_what_the_first_did_not_and_errors_are_those_of_the_last_run(
    fakes, gkt_run, chat, write, rows, capsys
):
    write(chat("a"), chat("b", "fail"), chat("c", "When?"), "nonsense")
    assert gkt_run() == 1
    assert len(Path("out.errors.jsonl").read_text().splitlines()) == 2
    before = Path("out.jsonl").read_bytes()
    fakes.asked.clear()
    capsys.readouterr()
    write(chat("a"), chat("b", "fixed"), chat("c", "When?"))
    assert gkt_run("--json") == 0
    assert set(fakes.asked) == {"fixed"}
    assert Path("out.jsonl").read_bytes().startswith(before)
    assert rows().keys() == {"a", "b", "c"}
    assert not Path("out.errors.jsonl").exists()
    summary = json.loads(capsys.readouterr().out)
    assert (summary["answered_before"], summary["answered"]) == (2, 1)
    assert gkt_run() == 0
    assert set(fakes.asked) == {"fixed"}


def test_a_line_that_a_killed_run_left_half_written_is_run_again(fakes, gkt_run, chat, write, rows):
    write(chat("a"), chat("b"))
    assert gkt_run() == 0
    whole = Path("out.jsonl").read_bytes()
    for missing in (1, 20, len(whole.splitlines()[-1])):
        Path("out.jsonl").write_bytes(whole[:-missing])
        fakes.calls.clear()
        assert gkt_run() == 0
        assert len({call.request_id for call in fakes.calls}) == 1
        assert rows().keys() == {"a", "b"}


def test_a_failure_that_may_pass_is_tried_once_more_when_the_others_are_done(fakes, gkt_run, chat, write, rows):
    write(chat("a", "once"), chat("b"))
    assert gkt_run("--concurrency", "1") == 0
    assert rows().keys() == {"a", "b"}
    questions = list(fakes.asked)
    assert questions.index("Why?") < len(questions) - 1 - questions[::-1].index("once")
    statuses = sorted((record.role, record.status) for record in read_records(Path("gkt.db")))
    assert statuses.count(("student", "failed")) == 1
    assert statuses.count(("student", "final")) == 2


def test_every_line_that_reached_a_pipeline_is_a_request_of_the_ledger(fakes, gkt_run, chat, write):
    write(chat("a"), chat("b", "fail"), chat("c", tools=[{"type": "function", "function": {"name": "f"}}]), "nonsense")
    assert gkt_run() == 1
    found = sorted((record.status, record.error, record.route) for record in read_requests(Path("gkt.db")))
    assert found == [
        ("error", "upstream_error", "student"),
        ("ok", "", "guided"),
        ("refused", "unsupported_feature", "forwarded"),
    ]


def test_no_more_calls_are_under_way_than_concurrency_says(fakes, gkt_run, chat, write, monkeypatch):
    from gkt_plugins.testing.engines import ScriptedEngine

    sizes: list[int] = []
    generate = ScriptedEngine.generate

    async def counted(self, calls):
        sizes.append(len(calls))
        return await generate(self, calls)

    monkeypatch.setattr(ScriptedEngine, "generate", counted)
    write(*(chat(str(i)) for i in range(30)))
    assert gkt_run("--concurrency", "4") == 0
    assert max(sizes) == 4


def test_the_table_shows_lines_tokens_by_role_and_the_teacher_alone(fakes, gkt_run, chat, write, capsys):
    write(chat("a"))
    assert gkt_run() == 0
    out = capsys.readouterr().out
    for heading in ("lines", "kept", "answered", "failed", "guided", "degraded", "cached", "seconds", "role", "USD"):
        assert heading in out


BUDGET = '[budget]\nper_day = "{}"\n'


def test_a_budget_that_is_used_up_leaves_lines_for_another_day(fakes, gkt_run, chat, write, rows):
    with Path("gkt.toml").open("a") as file:
        file.write(BUDGET.format("0.0000004"))
    write(*(chat(name, max_tokens=8) for name in "abcdef"))
    assert gkt_run("--concurrency", "1") in (1, 2)
    refused = rows("out.errors.jsonl")
    assert refused
    for row in refused.values():
        assert row["response"]["status_code"] == 429
        assert row["response"]["body"]["error"]["code"] == "insufficient_quota"
    spent = sum(record.cost_nano or 0 for record in read_records(Path("gkt.db")))
    assert spent <= 400


def test_a_budget_that_runs_short_leaves_the_teacher_out_and_the_answer_says_so(fakes, gkt_run, chat, write, rows):
    with Path("gkt.toml").open("a") as file:
        file.write(BUDGET.format("0.00002"))
    write(chat("a", max_tokens=8))
    assert gkt_run() == 0
    gkt = rows()["a"]["response"]["body"]["gkt"]
    assert gkt["degraded"]
    assert any("budget of the day" in note for note in gkt["notes"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-i", "none.jsonl"], "the requests 'none.jsonl' cannot be read"),
        (["-i", "empty.jsonl"], "'empty.jsonl' holds no requests; write one a line, in the OpenAI batch format"),
        (["-o", "in.jsonl"], "--input, --output and --errors must be three files"),
        (["--errors", "out.jsonl"], "--input, --output and --errors must be three files"),
        (["-o", "nowhere/a.jsonl"], "the answers 'nowhere/a.jsonl' cannot be written"),
        (["-o", "other.md"], "'other.md' is no file of answers, see its line 1; name another with --output"),
        (["-o", "torn.md"], "'torn.md' is no file of answers, see its line 1; name another with --output"),
        (["-o", "utf16.md"], "'utf16.md' is no file of answers, see its line 1; name another with --output"),
        (["--pipeline", "x"], "there is no pipeline 'x'; [pipelines.NAME] sections that exist: alone, default"),
        (["--set", "pipelines.default.guidance.tokens=-1"], "guidance.tokens"),
    ],
)
def test_what_cannot_be_run_is_one_sentence_and_exit_code_2(fakes, gkt_run, chat, write, capsys, arguments, sentence):
    write(chat("a"))
    others = {"other.md": b"# Notes\nA line.\n", "torn.md": b"# Notes", "utf16.md": b"\xff\xfe{\x00\n\x00"}
    for name, content in others.items():
        Path(name).write_bytes(content)
    Path("empty.jsonl").write_text("\n\n")
    before = Path("in.jsonl").read_bytes()
    assert gkt_run(*arguments) == 2
    assert sentence in capsys.readouterr().err
    assert Path("in.jsonl").read_bytes() == before
    assert {name: Path(name).read_bytes() for name in others} == others
    assert fakes.asked == []


def test_output_that_another_run_is_writing_is_refused(fakes, gkt_run, chat, write, capsys):
    from gkt_plugins.batch.files import BatchFiles

    write(chat("a"))
    with BatchFiles(Path("out.jsonl")):
        assert gkt_run() == 2
    assert "'out.jsonl' is being written by another run; wait for it" in capsys.readouterr().err
    assert gkt_run() == 0


@pytest.mark.parametrize("method", ["opened", "closed", "request"])
def test_a_ledger_that_cannot_be_written_ends_the_run_and_what_was_answered_stays(
    fakes, gkt_run, chat, write, rows, capsys, monkeypatch, method
):
    from gkt_plugins.accounting.accountant import Accountant

    kept = getattr(Accountant, method)
    calls: list[object] = []

    async def broken(self: Accountant, record: object) -> object:
        calls.append(record)
        if len(calls) > 40:
            raise BackendError("the ledger cannot be written: no space left; free some")
        return await kept(self, record)

    monkeypatch.setattr(Accountant, method, broken)
    names = [f"q{number}" for number in range(60)]
    write(*map(chat, names))
    assert gkt_run("--concurrency", "2") == 2
    assert "error: the ledger cannot be written: no space left; free some" in capsys.readouterr().err
    answered = rows().keys()
    assert 0 < len(answered) < 60
    monkeypatch.setattr(Accountant, method, kept)
    assert gkt_run() == 0
    assert rows().keys() == set(names)
