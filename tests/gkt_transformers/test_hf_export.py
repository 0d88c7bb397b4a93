"""An exported folder speculates wherever ``trust_remote_code`` is on, wherever it lies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from typer.testing import CliRunner

import gkt_transformers
from gkt_plugins.cli import app
from gkt_plugins.config import load_config
from gkt_plugins.contracts import ExportRequest
from gkt_plugins.errors import ConfigError
from gkt_transformers.export import TransformersExporter

PROMPT = torch.tensor([[5, 6, 7, 8]])


def _run(*arguments):
    return CliRunner().invoke(app, ["export", "--to", "transformers", *map(str, arguments)])


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "llama-gkt"
    result = _run("--target", tiny.folder("llama"), "--draft", tiny.folder("draft"), "--gamma", 3, "--output", output)
    assert result.exit_code == 0, result.output
    return output


def test_the_folder_is_the_model_with_its_draft_and_how_to_use_it(tiny, exported):
    assert tomllib.loads((exported / "gkt.toml").read_text())["speculation"]["draft"] == "draft"
    assert load_config(exported / "gkt.toml").speculation.gamma == 3
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (exported / name).read_bytes() == (tiny.folder("llama") / name).read_bytes()
        assert (exported / "draft" / name).read_bytes() == (tiny.folder("draft") / name).read_bytes()
    requirements = (exported / "custom_generate" / "requirements.txt").read_text().split()
    assert requirements[0].startswith("gkt-plugins>=")


def test_a_model_loaded_from_it_speculates_without_any_change(tiny, exported):
    plain = AutoModelForCausalLM.from_pretrained(tiny.folder("llama"))
    expected = plain.generate(PROMPT, max_new_tokens=20)
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    assert torch.equal(model.generate(PROMPT, max_new_tokens=20), expected)
    assert gkt_transformers.last_report(model).counts.drafted > 0


def test_a_model_loaded_from_it_may_be_asked_for_the_folder_again(tiny, exported):
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    options = {"max_new_tokens": 20, "custom_generate": str(exported), "trust_remote_code": True}
    plain = AutoModelForCausalLM.from_pretrained(tiny.folder("llama"))
    assert torch.equal(model.generate(PROMPT, **options), plain.generate(PROMPT, max_new_tokens=20))
    assert gkt_transformers.last_report(model).counts.drafted > 0


def test_without_trust_it_is_a_plain_model(exported):
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert "generate" not in vars(model)


def test_a_pipeline_over_the_folder_speculates(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    pipe = pipeline("text-generation", model=str(exported), tokenizer=tokenizer, trust_remote_code=True)
    pipe("Anna has", max_new_tokens=12)
    assert gkt_transformers.last_report(pipe.model).tokens > 0


def test_it_may_be_moved(exported, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(exported, moved)
    model = AutoModelForCausalLM.from_pretrained(moved, trust_remote_code=True)
    model.generate(PROMPT, max_new_tokens=20)
    assert gkt_transformers.last_report(model).counts.drafted > 0


def test_an_exported_folder_may_be_exported_again(exported, tiny, tmp_path):
    config = load_config(exported / "gkt.toml")
    again = tmp_path / "again"
    TransformersExporter().export(ExportRequest(exported, again, config.speculation, base_dir=exported))
    assert sorted(p.name for p in again.iterdir()) == sorted(p.name for p in exported.iterdir())


def test_a_leniency_in_the_configuration_is_carried_along(tiny, tmp_path):
    path = tmp_path / "gkt.toml"
    path.write_text(
        f'[speculation]\ndrafter = "model"\ndraft = "{tiny.folder("draft")}"\nverifier = "lenient"\n'
        'rule = "capped"\nepsilon = 0.6\ndelta = 0.2\n'
    )
    result = _run("--target", tiny.folder("llama"), "--config", path, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    section = load_config(tmp_path / "out" / "gkt.toml").speculation
    assert (section.verifier, section.rule, section.epsilon, section.rule_options.delta) == (
        "lenient",
        "capped",
        0.6,
        0.2,
    )


def test_prompt_lookup_needs_no_draft_folder(tiny, tmp_path):
    path = tmp_path / "gkt.toml"
    path.write_text('[speculation]\ndrafter = "prompt_lookup"\nmax_ngram = 2\n')
    assert _run("--target", tiny.folder("llama"), "--config", path, "--output", tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / "draft").exists()
    assert load_config(tmp_path / "out" / "gkt.toml").speculation.drafter_options.max_ngram == 2


def _refusal(*arguments):
    result = _run(*arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, ConfigError)
    return str(result.exception)


def test_wrong_folders_are_refused_before_anything_is_written(tiny, tmp_path):
    llama, draft, output = tiny.folder("llama"), tiny.folder("draft"), tmp_path / "out"
    assert "target folder 'nowhere' has no config.json" in _refusal(
        "--target", "nowhere", "--draft", draft, "--output", output
    )
    assert "draft folder" in _refusal("--target", llama, "--draft", tmp_path / "none", "--output", output)
    assert "encoder-decoder" in _refusal("--target", tiny.folder("t5"), "--draft", draft, "--output", output)
    assert "already has something in it" in _refusal("--target", llama, "--draft", draft, "--output", draft)
    assert "inside the target's folder" in _refusal("--target", llama, "--draft", draft, "--output", llama / "out")
    assert not output.exists()


def test_the_command_line_says_what_it_expects(tiny, tmp_path):
    llama, output = tiny.folder("llama"), tmp_path / "out"
    assert "either --config or --draft" in _refusal("--target", llama, "--output", output)
    assert "speculation.gamma must be an integer of at least 1, or 'auto'" in _refusal(
        "--target", llama, "--draft", tiny.folder("draft"), "--gamma", "0", "--output", output
    )
    (tmp_path / "gkt.toml").write_text("")
    assert "has no [speculation] section" in _refusal(
        "--target", llama, "--config", tmp_path / "gkt.toml", "--output", output
    )
    result = CliRunner().invoke(app, ["export", "--to", "transformer", "--target", "m", "--output", "o"])
    assert "did you mean 'transformers'?" in str(result.exception)


def test_a_model_from_the_hub_brings_its_draft(exported, tmp_path):
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--team--fast"
    shutil.copytree(exported, repository / "snapshots" / commit)  # as the hub's client keeps it
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "import torch, gkt_transformers\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('team/fast', trust_remote_code=True)\n"
        "model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=20)\n"
        "assert gkt_transformers.last_report(model).counts.drafted > 0\n"
    )
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["gkt_plugins.cli.export", "gkt_transformers.export", "gkt_transformers.plugin"])
def test_importing_loads_no_engine(module):
    code = f"import sys, {module}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
