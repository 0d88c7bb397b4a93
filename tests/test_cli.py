"""The command line: help, one sentence for an error, and what ``gkt config`` and ``gkt plugins`` print."""

from __future__ import annotations

import json

import pytest

from gkt_plugins import __version__
from gkt_plugins.cli import VERBS, main
from gkt_plugins.config import Config
from gkt_plugins.errors import ConfigError

CONFIG = """\
[engines.edge]
adapter = "transformers"
model = "models/small"
[pipelines.default]
student = "edge"
[cache]
url_env = "GKT_TEST_CACHE"
"""


@pytest.fixture
def gkt(capsys, monkeypatch, tmp_path):
    """Run ``gkt`` here; gives exit code, standard output and standard error."""
    for name in ("GKT_CONFIG", "GKT_DEBUG", "GKT_TEST_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)

    def gkt(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return gkt


def test_the_version_is_the_packages(gkt):
    assert gkt("--version") == (0, f"gkt-plugins {__version__}\n", "")


def test_help_lists_every_verb(gkt):
    code, out, _ = gkt("--help")
    assert code == 0
    assert all(f" {verb} " in out for verb in VERBS)


def test_no_verb_shows_the_help(gkt):
    code, out, err = gkt()
    assert code == 2
    assert "Usage" in out + err
    assert all(f" {verb} " in out + err for verb in VERBS)


def test_an_unknown_verb_is_exit_code_2(gkt):
    code, _, err = gkt("confg")
    assert code == 2
    assert "No such command 'confg'" in err


def test_an_error_is_one_sentence_on_stderr_and_exit_code_2(gkt):
    assert gkt("config", "check", "none.toml") == (
        2,
        "",
        "error: there is no configuration at 'none.toml'; write one there, give its path, or set GKT_CONFIG\n",
    )


@pytest.mark.parametrize("how", ["--debug", "GKT_DEBUG"])
def test_debug_shows_the_traceback(gkt, monkeypatch, how):
    monkeypatch.setenv("GKT_DEBUG", "1" if how == "GKT_DEBUG" else "0")
    with pytest.raises(ConfigError, match=r"none\.toml"):
        main([*(["--debug"] if how == "--debug" else []), "config", "check", "none.toml"])


def test_debug_set_to_0_is_off(gkt, monkeypatch):
    monkeypatch.setenv("GKT_DEBUG", "0")
    assert gkt("config", "check", "none.toml")[0] == 2


def test_every_wrong_key_has_a_line_of_its_own(gkt, tmp_path):
    (tmp_path / "gkt.toml").write_text("[vllm]\nmax_leniency = 2\n[gatway]\n")
    code, out, err = gkt("config", "check")
    assert (code, out) == (2, "")
    assert [line.split(" ")[:2] for line in err.splitlines()] == [["error:", "vllm.max_leniency"], ["error:", "gatway"]]


def test_check_prints_what_would_be_used_and_who_provides_it(gkt, tmp_path):
    (tmp_path / "gkt.toml").write_text(CONFIG)
    code, out, _ = gkt("config", "check", "--set", "engines.edge.max_batch=2")
    assert code == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    assert ["engines.edge.adapter", '"transformers"', f"gkt-plugins {__version__}"] in rows
    assert ["engines.edge.max_batch", "2", ""] in rows
    assert ["ledger.url", '"sqlite:///gkt.db"', ""] in rows


def test_check_warns_about_environment_variables_that_are_not_set(gkt, tmp_path, monkeypatch):
    (tmp_path / "gkt.toml").write_text(CONFIG)
    warning = "warning: cache.url_env names GKT_TEST_CACHE, and that environment variable is not set\n"
    code, _, err = gkt("config", "check")
    assert (code, err) == (0, warning)
    monkeypatch.setenv("GKT_TEST_CACHE", "k")
    assert gkt("config", "check")[2] == ""


def test_check_as_json_can_be_read_by_programs(gkt, tmp_path):
    (tmp_path / "other.toml").write_text(CONFIG)
    code, out, _ = gkt("config", "check", "other.toml", "--json")
    assert code == 0
    checked = json.loads(out)
    assert checked["source"] == "other.toml"
    assert checked["config"]["engines"]["edge"]["model"] == "models/small"
    assert checked["providers"]["engines.edge.adapter"] == f"gkt-plugins {__version__}"


def test_the_schema_closes_every_table_and_asks_for_what_is_required(gkt):
    code, out, _ = gkt("config", "schema")
    assert code == 0
    schema = json.loads(out)
    assert set(schema["properties"]) == set(Config.model_fields) - {"base_dir", "source"}
    assert schema["additionalProperties"] is False
    definitions = schema["$defs"]
    assert all(definition["additionalProperties"] is False for definition in definitions.values())
    assert definitions["PipelineSection"]["required"] == ["student"]
    cases = {case["then"]["title"]: case for case in definitions["EngineSection"]["allOf"]}
    case = cases['adapter = "transformers"']
    assert case["then"]["required"] == ["model"]
    assert case["then"]["properties"]["max_batch"]["minimum"] == 1


def test_plugins_lists_what_ships(gkt):
    code, out, err = gkt("plugins", "--json")
    assert (code, err) == (0, "")
    infos = {info["name"]: info for info in json.loads(out)}
    assert infos["core"]["status"] == infos["transformers"]["status"] == "loaded"
    assert infos["core"]["version"] == __version__
    assert infos["core"]["provides"]["gkt_cutting_policies"] == ["word", "sentence", "raw"]
