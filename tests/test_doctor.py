"""``gkt doctor``: everything that a configuration needs is looked at before a request needs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gkt_plugins.cli import main
from gkt_plugins.testing.openai_upstream import Upstream

TEXT = "The first eight letters are A, B, C, D, E, and some more."


def engine(name: str, upstream: Upstream, more: str = "") -> str:
    return f'[engines.{name}]\nadapter = "openai"\nbase_url = "{upstream.url}"\nmodel = "{upstream.model}"\n{more}\n'


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    """Run ``gkt doctor`` on a configuration; exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GKT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("CLOUD_KEY", raising=False)

    def doctor(config: str, *arguments: str) -> tuple[int, str]:
        Path("gkt.toml").write_text(config)
        try:
            main(["doctor", *arguments])
        except SystemExit as exc:
            return int(exc.code or 0), "".join(capsys.readouterr())
        return 0, "".join(capsys.readouterr())

    return doctor


def test_a_working_configuration_is_told_part_by_part(doctor):
    with Upstream(TEXT) as upstream:
        code, out = doctor(
            engine("cloud", upstream)
            + engine("edge", upstream)
            + f'[prices.{upstream.model}]\ninput_per_million = "2.50"\noutput_per_million = "10"\n'
            + '[pipelines.default]\nteacher = "cloud"\nstudent = "edge"\n[cache]\n'
        )
    assert code == 0, out
    for line in (
        "engine cloud",
        "USD 2.50 in, 10.00 out, per million tokens (config)",
        "chat with continue_final_message",
        "cloud guides, edge completes",
        "guidance goes in as",
        "gkt.db",
        "reads and writes",
        "All of it can be used.",
    ):
        assert line in out


def test_what_cannot_be_used_is_said_and_is_exit_code_1(doctor):
    with Upstream(TEXT, key="right") as upstream:
        code, out = doctor(
            engine("cloud", upstream, 'api_key_env = "CLOUD_KEY"')
            + engine("edge", upstream)
            + '[pipelines.default]\nteacher = "cloud"\nstudent = "edge"\n'
            + '[ledger]\nurl = "sqlite:///nowhere/gkt.db"\n[cache]\nurl = "redis://127.0.0.1:1"\n'
        )
    assert code == 1
    for line in (
        "CLOUD_KEY is not set",
        "refused the key with status 401; set engines.edge.api_key_env",
        "its student edge cannot be used",
        "the guidance cache at redis://127.0.0.1:1 cannot be used",
        "nowhere",
        "Not all of it can be used.",
    ):
        assert line in out


def test_a_teacher_that_cannot_be_used_is_borne_where_the_student_may_answer_alone(doctor):
    with Upstream(TEXT) as upstream:
        config = engine("edge", upstream) + '[engines.gone]\nadapter = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n'
        config += 'model = "x"\n[pipelines.default]\nteacher = "gone"\nstudent = "edge"\n'
        _, out = doctor(config, "--json")
        _, strict = doctor(config + '[pipelines.default.guidance]\non_teacher_error = "fail"\n', "--json")
    borne, refused = (next(p for p in json.loads(o)["parts"] if p["kind"] == "pipeline") for o in (out, strict))
    assert borne["error"] == ""
    assert "the student answers alone" in borne["findings"][-1]["value"]
    assert "its teacher gone cannot be used" in refused["error"]


def test_a_student_that_can_only_be_hinted_is_warned_of_and_a_teacher_is_not(doctor):
    with Upstream(TEXT, continues=[]) as upstream:
        config = engine("cloud", upstream) + engine("edge", upstream)
        _, out = doctor(config + '[pipelines.default]\nteacher = "cloud"\nstudent = "edge"\n', "--json")
    routes = {
        part["name"]: next(one for one in part["findings"] if one["name"] == "prefix route")
        for part in json.loads(out)["parts"]
        if part["kind"] == "engine"
    }
    assert routes["cloud"]["good"] is None
    assert routes["edge"]["good"] is False
    assert "chat_template" in routes["edge"]["advice"]


def test_named_engines_alone_are_looked_at_and_asked_again_when_told_to(doctor):
    with Upstream(TEXT) as upstream:
        config = engine("cloud", upstream) + engine("edge", upstream)
        code, out = doctor(config, "edge", "--json")
        assert code == 0
        assert [part["name"] for part in json.loads(out)["parts"]] == ["edge"]
        asked = len(upstream.received)
        doctor(config, "edge")
        assert len(upstream.received) == asked
        doctor(config, "edge", "--refresh")
        assert len(upstream.received) > asked


def test_a_price_that_is_not_known_is_told_with_where_to_put_it(doctor):
    with Upstream(TEXT, model="acme/some.model") as upstream:
        code, out = doctor(engine("edge", upstream))
    assert code == 0
    assert 'give one in [prices."acme/some.model"], or costs stay unknown' in out
    assert "All of it can be used, but see what is marked with !" in out


def test_an_engine_that_is_not_there_is_answered_with_those_that_are(doctor):
    with Upstream(TEXT) as upstream:
        code, out = doctor(engine("edge", upstream), "egde")
    assert code == 2
    assert "there is no engine 'egde'; did you mean 'edge'" in out
