"""What is wrong or impossible is one sentence that names the key, before vLLM loads a model or starts a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.demo.models import model_dir
from gkt_plugins.errors import GktError
from gkt_plugins.testing.plugins import write_distribution

MODEL = str(model_dir("teacher"))
DRAFT = f'[speculation]\ndrafter = "model"\ndraft = "{model_dir("draft")}"\n'


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """What vLLM's configuration is refused with; no engine is started."""

    def refused(section: object, **options: Any) -> str:
        from vllm.engine.arg_utils import EngineArgs

        engine_args = EngineArgs(
            model=MODEL, dtype="float32", max_model_len=512, additional_config={"gkt": section}, **options
        )
        with pytest.raises(GktError) as caught:
            engine_args.create_engine_config()
        message = str(caught.value)
        assert "\n" not in message
        return message

    return refused


@pytest.fixture
def refused_file(refused: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """The same, for a file of the given text."""

    def refused_file(text: str, **options: Any) -> str:
        (tmp_path / "gkt.toml").write_text(text)
        return refused({"config": str(tmp_path / "gkt.toml")}, **options)

    return refused_file


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("gkt.toml", "additional_config.gkt must be a table"),
        ({}, "additional_config.gkt: config is missing"),
        ({"config": "gkt.toml", "pipelin": "x"}, "additional_config.gkt: pipelin is not a known key"),
        ({"config": 3}, "additional_config.gkt: config must be a valid string"),
    ],
)
def test_a_wrong_section_is_refused_by_its_key(refused, section, words):
    assert words in refused(section)


def test_a_file_that_cannot_be_read_is_refused_by_its_name(refused, tmp_path):
    missing = tmp_path / "missing.toml"
    assert str(missing) in refused({"config": str(missing)})
    assert str(tmp_path) in refused({"config": str(tmp_path)})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert str(binary) in refused({"config": str(binary)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[speculation", "is not TOML"),
        (DRAFT + "gamma = 0", "speculation.gamma must be an integer of at least 1, or 'auto', got 0"),
        (DRAFT + 'verifier = "nobody"', "speculation.verifier must name a known"),
        (DRAFT + 'verifier = "lenient"\nrule = "cubic"\nepsilon = 0.5', "speculation.rule must name a known"),
        (DRAFT + 'verifier = "lenient"\nepsilon = 1.5', "speculation.epsilon must be in (0, 1], got 1.5"),
        (DRAFT + "[vllm]\nmax_leniency = 0", "vllm.max_leniency must be in (0, 1], got 0"),
        (DRAFT + "[vllm]\nlargest_batch = 0", "vllm.largest_batch must be"),
        ("[vllm]\nlargest_batch = 8", "vllm.largest_batch is about drafts, and the file has no [speculation]"),
        ("[vllm]\nmax_leniency = 0.5", "vllm.max_leniency is about drafts, and the file has no [speculation]"),
        ('[speculation]\ndrafter = "model"\ndraft = "./nothing"', "speculation.draft names no folder"),
        ('[speculation]\ndrafter = "model"', "speculation.draft is missing"),
    ],
)
def test_a_wrong_file_is_refused_by_its_key(refused_file, text, words):
    assert words in refused_file(text)


def test_a_draft_with_another_vocabulary_is_refused_with_both_sizes(refused_file, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((model_dir("draft") / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    (other / "model.safetensors").write_bytes(b"weights")
    message = refused_file('[speculation]\ndrafter = "model"\ndraft = "other"')
    assert f"got 512 tokens for the target's {config['vocab_size']}" in message


def test_a_schedule_of_drafts_that_vllm_drops_is_refused(refused_file):
    message = refused_file(DRAFT + "gamma = 4\n[vllm]\nlargest_batch = 8", data_parallel_size=2)
    assert "remove vllm.largest_batch = 8, or --data-parallel-size" in message


def test_a_release_that_was_not_tried_is_refused_unless_it_is_let_through(refused_file, tmp_path, monkeypatch):
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setattr(vllm, "__version__", "0.99.1")
    assert "vLLM 0.99.1 was not tried" in refused_file(DRAFT)
    (tmp_path / "gkt.toml").write_text(DRAFT + "[vllm]\nallow_untested_version = true")
    section = {"gkt": {"config": str(tmp_path / "gkt.toml")}}
    made = EngineArgs(model=MODEL, max_model_len=512, additional_config=section).create_engine_config()
    assert made.speculative_config.method == "draft_model"


STRICT = """
from gkt_plugins.contracts import Factory
from gkt_plugins.hookspecs import hookimpl
GKT_CONTRACT = 1
@hookimpl
def gkt_verifiers():
    return {"strict": Factory(lambda options, context: None, summary="accepts nothing")}
"""


def test_a_verifier_of_somebody_else_is_refused_because_vllm_verifies_itself(refused_file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(write_distribution(tmp_path, "gkt-strict", "gkt_strict", STRICT)))
    message = refused_file(DRAFT + 'verifier = "strict"')
    assert "vLLM verifies drafts itself and cannot run the verifier 'strict'" in message


def test_a_runner_that_has_not_the_drafts_is_refused_against_the_environments_word(refused_file, monkeypatch):
    import vllm

    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    monkeypatch.setattr(vllm, "__version__", "0.31.0")  # the sentence is our own, whatever is installed
    message = refused_file('[speculation]\ndrafter = "prompt_lookup"\ngamma = 4')
    assert "asks for vLLM's second model runner, which has the method 'ngram' from 0.32 on" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DRAFT + "gamma = 0", "speculation.gamma must be an integer of at least 1"),
        (
            '[ledger]\nurl = "sqlite:///missing/ledger.db"',
            "the ledger '{folder}/missing/ledger.db' could not",
        ),
    ],
)
def test_a_server_that_cannot_start_says_one_sentence_and_no_way_through_vllm(tmp_path, text, words):
    (tmp_path / "gkt.toml").write_text(text)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", MODEL, "--dtype", "float32", "--port", "1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_PLUGINS": "gkt"}
    run = subprocess.run(
        [*command, "--additional-config.gkt.config", "gkt.toml"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 1
    [sentence] = [line for line in run.stderr.splitlines() if "gkt-plugins: " in line]
    assert sentence.partition("gkt-plugins: ")[2].startswith(words.format(folder=tmp_path))
    assert "Traceback" not in run.stderr
    assert "Loading" not in run.stdout + run.stderr
