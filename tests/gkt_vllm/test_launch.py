"""``gkt vllm serve`` names the plugins that would load anyway, and writes the section."""

import json
import sys
from pathlib import Path

import pytest

from gkt_plugins.cli import main
from gkt_plugins.errors import ConfigError
from gkt_vllm import launch


class Point:
    def __init__(self, name):
        self.name = name


@pytest.fixture
def installed(monkeypatch):
    """Entry points of other packages, beside ours."""
    groups = {"vllm.general_plugins": ["gkt", "zeta"], "vllm.stat_logger_plugins": ["gkt", "alpha"]}
    monkeypatch.setattr(launch, "entry_points", lambda group: [Point(name) for name in groups.get(group, [])])


def test_what_loads_without_the_variable_goes_on_loading_with_it(installed):
    assert launch.plugins_variable({}) == "alpha,zeta,gkt"


@pytest.mark.parametrize(
    ("given", "wanted"), [("", "gkt"), ("gkt", "gkt"), ("zeta", "zeta,gkt"), ("gkt,zeta", "zeta,gkt")]
)
def test_what_the_operator_named_stays_and_we_are_added(installed, given, wanted):
    assert launch.plugins_variable({"VLLM_PLUGINS": given}) == wanted


def test_the_section_is_written_beside_vllms_own_arguments(tmp_path):
    words = launch.command(tmp_path / "gkt.toml", None, ["model", "--port", "9"])
    assert words[:4] == [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
    assert words[4:] == ["model", "--port", "9", "--additional-config.gkt.config", str(tmp_path / "gkt.toml")]


@pytest.mark.parametrize(
    "given",
    [
        ["--additional-config", '{"other": 1}'],
        ['--additional-config={"other": 1}'],
        ['--additional_config={"other":1}'],
    ],
)
def test_an_additional_config_of_the_operators_is_kept(tmp_path, given):
    words = launch.command(tmp_path / "gkt.toml", "fast", ["model", *given, "--port", "9"])
    assert words[-2:] == ["--port", "9"]
    merged = json.loads(words[words.index("--additional-config") + 1])
    assert merged == {"other": 1, "gkt": {"config": str(tmp_path / "gkt.toml"), "pipeline": "fast"}}


@pytest.mark.parametrize(
    "arguments",
    [
        ["m", "--additional-config", '{"gkt": {}}'],
        ["m", "--additional-config.gkt.config", "x"],
        ["m", "--additional_config.gkt.config=x"],
        ["m", '--additional-config={"gkt": {}}'],
        ["m", "--additional-config", "[]"],
        ["m", "--additional-config", "{"],
        ["m", "--additional-config"],
    ],
)
def test_a_section_of_the_operators_own_is_refused(arguments):
    with pytest.raises(ConfigError, match="additional"):
        launch.command(Path("gkt.toml"), None, arguments)


def test_the_dry_run_prints_the_command_and_a_wrong_file_stops_it(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    file = tmp_path / "gkt.toml"
    file.write_text("[vllm]\nmax_leniency = 0.5\n")
    with pytest.raises(SystemExit):
        main(["vllm", "serve", "small", "--gkt", str(file), "--dry-run", "--port", "9"])
    printed = capsys.readouterr().out
    assert printed.startswith("VLLM_PLUGINS=")
    assert f"serve small --port 9 --additional-config.gkt.config {file}" in printed
    file.write_text("[vllm]\nmax_lenience = 0.5\n")
    with pytest.raises(SystemExit) as ended:
        main(["vllm", "serve", "small", "--gkt", str(file), "--dry-run"])
    assert ended.value.code == 2
    assert "max_lenience is not a known key" in capsys.readouterr().err
