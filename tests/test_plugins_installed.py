"""A second distribution, installed the way its users would: it is found, listed, configured, checked and run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gkt_plugins.testing.plugins import write_distribution

DUMMY = Path(__file__).parent / "dummy_plugin"

GREETING = """\
[engines.hall]
adapter = "dummy"
greeting = 'good day'
[pipelines.default]
student = "hall"
"""

Gkt = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which pip has installed the dummy distribution, offline."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder), str(DUMMY)], check=True)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Run Python in an environment that has the dummy distribution, and others beside it."""

    def run(*arguments: str, beside: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(str(folder) for folder in (installed, beside) if folder)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GKT_")}
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": path, "COLUMNS": "200"} | env,
            check=False,
        )

    return run


@pytest.fixture
def gkt(run) -> Gkt:
    return lambda *arguments, **kwargs: run("-c", "from gkt_plugins.cli import main; main()", *arguments, **kwargs)


CLASHING = """
from gkt_plugins.contracts import Factory
from gkt_plugins.hookspecs import hookimpl

GKT_CONTRACT = 1

@hookimpl
def gkt_engines():
    return {"dummy": Factory(lambda options, context: None)}
"""


def listed(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    assert done.returncode == 0, done.stderr
    return {info["distribution"]: info for info in json.loads(done.stdout)}


def test_it_is_listed_with_its_version_and_what_it_provides(gkt):
    info = listed(gkt("plugins", "--json"))["gkt-dummy"]
    assert (info["name"], info["version"], info["status"]) == ("dummy", "1.2.3", "loaded")
    assert info["provides"] == {"gkt_engines": ["dummy"], "gkt_leniency_rules": ["cube"]}
    shown = gkt("plugins").stdout
    assert "gkt-dummy" in shown
    assert "1.2.3" in shown
    assert "leniency_rules: cube" in shown


def test_its_option_appears_in_the_schema_of_the_configuration(gkt):
    schema = json.loads(gkt("config", "schema").stdout)["$defs"]
    engine = schema["EngineSection"]
    (dummy,) = [case["then"] for case in engine["allOf"] if case["if"]["properties"]["adapter"]["const"] == "dummy"]
    assert dummy["properties"]["greeting"]["description"] == "What every answer begins with."
    assert dummy["properties"]["repeat"]["exclusiveMinimum"] == 0
    assert "greeting" in engine["properties"]
    assert "dummy" in engine["properties"]["adapter"]["enum"]
    assert "cube" in schema["SpeculationSection"]["properties"]["rule"]["enum"]


def test_its_option_is_typed_and_a_misspelt_one_is_refused_with_the_nearest(gkt, tmp_path):
    (tmp_path / "gkt.toml").write_text(GREETING.replace("greeting = 'good day'", "greting = 'good day'\nrepeat = 0"))
    done = gkt("config", "check")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: engines.hall.greting is not a known key (gkt.toml, line 3); did you mean 'greeting'?",
        "error: engines.hall.repeat must be greater than 0, got 0 (gkt.toml, line 4)",
    ]
    done = gkt("config", "check", "--set", "engines.hall.repeat=0")
    assert "engines.hall.repeat must be greater than 0, got 0 (override 'engines.hall.repeat=0')" in done.stderr


def test_a_checked_configuration_says_which_distribution_provides_the_engine(gkt, tmp_path):
    (tmp_path / "gkt.toml").write_text(GREETING)
    checked = json.loads(gkt("config", "check", "--json").stdout)
    assert checked["providers"]["engines.hall.adapter"] == "gkt-dummy 1.2.3"
    assert checked["config"]["engines"]["hall"] == {"adapter": "dummy", "greeting": "good day", "repeat": 1}


def test_its_engine_answers_when_a_configuration_names_it(run, tmp_path):
    (tmp_path / "gkt.toml").write_text(GREETING + "[engines.hall2]\nadapter = 'dummy'\nrepeat = 2\n")
    code = """
import asyncio
from gkt_plugins.config import load_config
from gkt_plugins.contracts import BuildContext, Call, Engine, Prompt
from gkt_plugins.plugins import load_plugins
config, plugins = load_config(), load_plugins()
for name, section in config.engines.items():
    engine = plugins.engines().build(section.adapter, section.options, BuildContext(name=name))
    assert isinstance(engine, Engine)
    (answer,) = asyncio.run(engine.generate([Call(Prompt(text="to you"))]))
    print(engine.name, answer.text)
"""
    done = run("-c", code)
    assert done.stdout.splitlines() == ["hall good day to you", "hall2 hellohello to you"], done.stderr


def test_off_leaves_it_out_and_blocking_does_too(gkt, tmp_path):
    (tmp_path / "gkt.toml").write_text(GREETING)
    for env in ({"GKT_PLUGINS": "off"}, {"GKT_PLUGINS_BLOCK": "gkt_dummy"}, {"GKT_PLUGINS_BLOCK": "dummy"}):
        assert listed(gkt("plugins", "--json", **env))["gkt-dummy"]["status"] == "blocked"
        done = gkt("config", "check", **env)
        assert done.returncode == 2
        assert "must name a known engine adapter, got 'dummy'" in done.stderr
        assert "left out: gkt-dummy 1.2.3 (plugin 'dummy'), see 'gkt plugins'" in done.stderr


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nowhere_to_be_found", "importing 'gkt_other' raised ModuleNotFoundError"),
        ("raise SystemExit(0)", "importing 'gkt_other' raised SystemExit(0)"),
        ("def broken(:", "importing 'gkt_other' raised SyntaxError"),
        (CLASHING.replace("GKT_CONTRACT = 1", ""), "states no contract version; add 'GKT_CONTRACT = 1' to it"),
        (CLASHING.replace("= 1", "= 2"), "written for contract 2 and this gkt-plugins knows up to 1"),
        (
            CLASHING,
            "engine adapter 'dummy' is already provided by gkt-dummy 1.2.3 (plugin 'dummy'); "
            "block one of the two with GKT_PLUGINS_BLOCK",
        ),
    ],
    ids=["missing import", "exit", "syntax", "no contract", "newer contract", "name clash"],
)
def test_one_that_does_not_load_is_named_and_left_out_and_fatal_when_strict(gkt, tmp_path, code, reason):
    (tmp_path / "gkt.toml").write_text(GREETING)
    beside = write_distribution(tmp_path / "beside", "gkt-other", "gkt_other", code)
    info = listed(gkt("plugins", "--json", beside=beside))["gkt-other"]
    assert info["status"] == "failed"
    assert reason in str(info["reason"])
    assert gkt("plugins", "--strict", beside=beside).returncode == 1

    done = gkt("config", "check", beside=beside)
    assert done.returncode == 0
    assert f"gkt-other 0.1 (plugin 'gkt-other') is left out: {info['reason']}" in done.stderr
    done = gkt("config", "check", "--strict", beside=beside)
    assert done.returncode == 2
    assert done.stderr.startswith("error: gkt-other 0.1 (plugin 'gkt-other') is left out: ")


def test_blocking_one_of_two_that_clash_lets_the_other_in(gkt, tmp_path):
    beside = write_distribution(tmp_path / "beside", "gkt-other", "gkt_other", CLASHING)
    infos = listed(gkt("plugins", "--json", beside=beside, GKT_PLUGINS_BLOCK="gkt-dummy"))
    assert (infos["gkt-dummy"]["status"], infos["gkt-other"]["status"]) == ("blocked", "loaded")


def test_without_failures_strict_is_content(gkt):
    assert gkt("plugins", "--strict").returncode == 0
