"""The section comes by every way that vLLM has for its own configuration; without it, next to nothing is ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.demo.models import model_dir
from gkt_vllm.launch import command
from gkt_vllm.section import GktSection

MODEL = str(model_dir("teacher"))
CONFIG = f"""
[speculation]
drafter = "model"
draft = "{model_dir("draft")}"
gamma = 3
verifier = "lenient"
rule = "square"
epsilon = 0.5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gkt.toml"
    path.write_text(CONFIG)
    return path


def parsed(arguments: list[str]) -> Any:
    """The engine's arguments, as ``vllm serve MODEL …`` makes them."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    [serve] = cmd_init()
    serve.subparser_init(parser.add_subparsers(dest="subparser"))
    options = parser.parse_args(["serve", MODEL, "--dtype", "float32", "--max-model-len", "512", *arguments])
    options.model = options.model_tag or options.model
    return AsyncEngineArgs.from_cli_args(options)


def in_python(file: Path) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    section = {"gkt": {"config": str(file)}}
    return EngineArgs(model=MODEL, dtype="float32", max_model_len=512, additional_config=section)


def as_json(file: Path) -> Any:
    return parsed(["--additional-config", json.dumps({"gkt": {"config": str(file)}})])


def dotted(file: Path) -> Any:
    return parsed(["--additional-config.gkt.config", str(file)])


def in_yaml(file: Path) -> Any:
    yaml = file.with_name("vllm.yaml")
    yaml.write_text(f"additional_config:\n  gkt:\n    config: {file}\n")
    return parsed(["--config", str(yaml)])


@pytest.mark.parametrize("way", [in_python, as_json, dotted, in_yaml])
def test_every_way_of_vllm_turns_the_same_on(way, file):
    engine_args = way(file)
    vllm_config = engine_args.create_engine_config()
    speculative = vllm_config.speculative_config
    assert (speculative.method, speculative.num_speculative_tokens) == ("draft_model", 3)
    assert speculative.draft_model_config.model == str(model_dir("draft"))
    section = vllm_config.additional_config["gkt"]
    assert section["config"] == str(file)
    leniency = section["workers"]["leniency"]
    assert (leniency["rule"], leniency["epsilon"], leniency["least"]) == ("square", 0.5, 0.5)
    # The operator's own arguments are as they were: the same ones may start another engine.
    assert engine_args.additional_config == {"gkt": {"config": str(file)}}
    assert engine_args.speculative_config is None
    assert engine_args.create_engine_config().additional_config == vllm_config.additional_config


def test_other_plugins_sections_are_handed_through(file):
    engine_args = parsed(["--additional-config", json.dumps({"other": {"a": 1}, "gkt": {"config": str(file)}})])
    assert engine_args.create_engine_config().additional_config["other"] == {"a": 1}


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--additional-config", '{"other": {"a": 1}}'],
        ['--additional-config={"other": {"a": 1}}'],
        ["--additional-config.other.a", "1"],
    ],
)
def test_what_gkt_vllm_serve_writes_is_understood_beside_other_sections(file, given):
    written = command(GktSection(config=str(file)), [MODEL, *given])
    made = parsed(written[written.index(MODEL) + 1 :]).create_engine_config()
    assert made.speculative_config.method == "draft_model"
    assert ("other" in made.additional_config) == bool(given)


def test_a_path_in_the_section_starts_where_vllm_was_started(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    given = parsed(["--additional-config.gkt.config", "gkt.toml"]).create_engine_config().additional_config
    assert given["gkt"]["config"] == str(file)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What there is without a section, where ``GKT_CONFIG`` names a file with drafts; and all that was logged."""
    file = tmp_path_factory.mktemp("bare") / "gkt.toml"
    file.write_text(CONFIG)
    script = Path(__file__).with_name("without_section.py")
    environment = {**os.environ, "GKT_CONFIG": str(file), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "DEBUG"}
    result = file.with_name("result.json")
    run = subprocess.run([sys.executable, script, result], env=environment, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(result.read_text()), run.stdout + run.stderr


@pytest.mark.parametrize("process", ["frontend", "worker"])
def test_without_a_section_there_are_two_wraps_that_hand_everything_through(bare, process):
    found, _ = bare
    assert found[process]["replaced"] == [
        "vllm.engine.arg_utils.EngineArgs.create_engine_config",
        "vllm.v1.worker.worker_base.WorkerBase.__init__",
    ]
    assert set(found[process]["modules"]) <= {"gkt_vllm.patching", "gkt_vllm.registering"}


def test_without_a_section_nothing_of_ours_is_logged(bare):
    _, log = bare
    assert "- gkt -> gkt_vllm.registering:register" in log  # vLLM's own line, and proof that its log is looked at
    assert [line for line in log.splitlines() if "gkt-plugins" in line or "gkt: " in line] == []


def test_a_variable_that_names_a_configuration_turns_nothing_on(bare):
    found, _ = bare
    assert not found["drafts"]


@pytest.mark.parametrize(
    ("value", "general", "endpoint"),
    [
        ("None", True, False),
        ("gkt", True, True),
        ("other,gkt", True, True),
        ("other", False, False),
        ("", False, False),
    ],
)
def test_vllms_variable_decides_what_of_ours_it_loads(bare, value, general, endpoint):
    """None: the variable is not set."""
    loaded = bare[0]["loaded"][value]
    assert loaded["general"] == loaded["stat_logger"] == (["gkt"] if general else [])
    assert loaded["endpoint"] == (["gkt"] if endpoint else [])
