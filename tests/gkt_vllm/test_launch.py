"""``gkt vllm serve`` names the plugins that would load anyway, and writes the section."""

import json
import sys

import pytest

from gkt_plugins.cli import main
from gkt_plugins.errors import ConfigError
from gkt_vllm import launch, versions
from gkt_vllm.section import GktSection


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


@pytest.mark.parametrize("name", ["vllm.entrypoints.launchers.grpc_server", "vllm.entrypoints.grpc_server"])
def test_a_server_without_our_front_door_is_noticed_whatever_the_variable_says(monkeypatch, name):
    assert launch.unloaded({"VLLM_PLUGINS": "gkt"}) is None
    monkeypatch.setitem(sys.modules, name, None)
    assert "leave out --grpc" in launch.unloaded({"VLLM_PLUGINS": "gkt"})


def test_the_section_is_written_beside_vllms_own_arguments(tmp_path):
    words = launch.command(GktSection(config=str(tmp_path / "gkt.toml")), ["model", "--port", "9"])
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
    section = GktSection(config=str(tmp_path / "gkt.toml"), pipeline="fast")
    words = launch.command(section, ["model", *given, "--port", "9"])
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
        launch.command(GktSection(config="gkt.toml"), arguments)


@pytest.mark.parametrize("name", ["additional_config", "additional-config"])
def test_an_additional_config_in_vllms_own_file_is_kept(tmp_path, name):
    file = tmp_path / "vllm.yaml"
    file.write_text(f"port: 9\n{name}:\n  other: {{a: 1}}\n")
    section, given = GktSection(config="gkt.toml"), ["model", "--config", str(file)]
    words = launch.command(section, given)
    assert words[4:7] == given
    merged = json.loads(words[words.index("--additional-config") + 1])
    assert merged == {"other": {"a": 1}, "gkt": {"config": "gkt.toml"}}
    # What stands on the command line goes before the file, with us as without.
    words = launch.command(section, [*given, "--additional-config", "{}"])
    assert json.loads(words[words.index("--additional-config") + 1]) == {"gkt": {"config": "gkt.toml"}}
    assert "--additional-config" not in launch.command(section, [*given, "--additional-config.b", "2"])


def test_a_section_in_vllms_own_file_is_refused(tmp_path):
    (tmp_path / "vllm.yaml").write_text("additional_config: {gkt: {config: other.toml}}\n")
    with pytest.raises(ConfigError, match="itself; leave it out"):
        launch.command(GktSection(config="gkt.toml"), ["model", "--config", str(tmp_path / "vllm.yaml")])


@pytest.mark.parametrize("text", [None, "a: [", "- a list", "", "additional_config: text", "port: 9"])
def test_what_is_wrong_with_vllms_own_file_is_left_for_vllm_to_say(tmp_path, text):
    file = tmp_path / "vllm.yaml"
    if text is not None:
        file.write_text(text)
    words = launch.command(GktSection(config="gkt.toml"), ["--config", str(file)])
    assert words[4:] == ["--config", str(file), "--additional-config.gkt.config", "gkt.toml"]


@pytest.fixture
def vllm_is_there(monkeypatch):
    monkeypatch.setattr(versions.metadata, "version", lambda name: "0.32.0")


@pytest.mark.usefixtures("vllm_is_there")
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


@pytest.mark.usefixtures("vllm_is_there")
def test_a_pipeline_that_does_not_exist_stops_the_start_before_vllm_is_loaded(tmp_path, capsys):
    (tmp_path / "gkt.toml").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["vllm", "serve", "small", "--gkt", str(tmp_path / "gkt.toml"), "--pipeline", "nobody"])
    assert ended.value.code == 2
    assert "gkt.pipeline must name a pipeline, got 'nobody'" in capsys.readouterr().err


@pytest.mark.usefixtures("vllm_is_there")
@pytest.mark.parametrize("option", ["-dph", "-tp", "-h", "-dpe", "--no-enable-log-requests", "-O3"])
def test_every_option_of_vllms_is_handed_on(tmp_path, capsys, option):
    (tmp_path / "gkt.toml").write_text("")
    with pytest.raises(SystemExit):
        main(["vllm", "serve", "small", option, "--gkt", str(tmp_path / "gkt.toml"), "--dry-run"])
    assert f"serve small {option} --additional-config" in capsys.readouterr().out


def test_without_vllm_the_start_says_so(tmp_path, capsys, monkeypatch):
    def absent(name):
        raise versions.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions.metadata, "version", absent)
    with pytest.raises(SystemExit) as ended:
        main(["vllm", "serve", "small"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: vLLM is not installed here")
