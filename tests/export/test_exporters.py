"""Every exporter writes a folder that explains itself, and refuses what its stack would silently do differently."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from gkt_plugins.cli import app
from gkt_plugins.config import load_config
from gkt_plugins.contracts import BuildContext, Exported, ExportRequest, Factory
from gkt_plugins.errors import BackendError, ConfigError
from gkt_plugins.exporting import staged
from gkt_plugins.hookspecs import hookimpl
from gkt_plugins.testing.plugins import plugins_from

ENGINES = ("vllm", "sglang", "llama.cpp")


def model(folder, *, vocab_size=320, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocab_size, **config}))
    (folder / "model.safetensors").write_bytes(folder.name.encode())
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def models(tmp_path):
    return model(tmp_path / "large"), model(tmp_path / "small")


def run(to, models, output, *more, draft=True):
    target, small = models
    arguments = ["--target", target, *(["--draft", small] if draft else []), "--output", output, *more]
    return CliRunner().invoke(app, ["export", "--to", to, *map(str, arguments)])


def refusal(*arguments, **options):
    result = run(*arguments, **options)
    assert isinstance(result.exception, ConfigError | BackendError), result.output
    return str(result.exception)


# ------------------------------------------------------------------------------------------------ what loads the folder


def test_vllm_s_command_carries_one_json_object(models, tmp_path):
    assert run("vllm", models, tmp_path / "out", "--gamma", "4").exit_code == 0
    command = shlex.split(json.loads((tmp_path / "out" / "gkt-export.json").read_text())["load"])
    assert command[:4] == ["vllm", "serve", "target", "--speculative-config"]
    assert json.loads(command[4]) == {
        "method": "draft_model", "model": "draft", "num_speculative_tokens": 4, "draft_sample_method": "probabilistic",
    }  # fmt: skip
    assert len(command) == 5


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])  # as transformers 5 writes it, and as 4 did
def test_vllm_s_half_precision_for_a_target_of_float32_is_said(tmp_path, key):
    models = model(tmp_path / "large", **{key: "float32"}), model(tmp_path / "small")
    assert "note: vLLM runs a target saved in float32 in half precision" in run("vllm", models, tmp_path / "out").output


def test_vllm_drafts_greedily_when_told_so(models, tmp_path):
    result = run("vllm", models, tmp_path / "out", "--set", "draft_sample_method=greedy")
    assert '"draft_sample_method": "greedy"' in result.output


def test_vllm_verifies_by_blocks_when_the_configuration_does(models, tmp_path):
    config = tmp_path / "gkt.toml"
    config.write_text('[speculation]\ndrafter = "model"\ndraft = "small"\ngamma = 3\nverifier = "block"\n')
    result = run("vllm", models, tmp_path / "out", "--config", config, draft=False)
    assert '"rejection_sample_method": "block"' in result.output
    assert "note: vLLM's first model runner verifies token by token instead" in result.output


def test_sglang_s_block_is_one_longer_than_its_draft(models, tmp_path):
    result = run("sglang", models, tmp_path / "out", "--gamma", "4", "--json")
    assert json.loads(result.output)["load"] == (
        "sglang serve --model-path target --speculative-algorithm STANDALONE --speculative-draft-model-path draft "
        "--speculative-num-steps 4 --speculative-eagle-topk 1 --speculative-num-draft-tokens 5"
    )


def test_llama_cpp_s_commands_convert_both_models_and_serve_them(models, tmp_path):
    result = run("llama.cpp", models, tmp_path / "out", "--gamma", "4", "--set", "outtype=q8_0", "--json")
    assert json.loads(result.output)["load"].splitlines() == [
        "python convert_hf_to_gguf.py target --outfile target.gguf --outtype q8_0",
        "python convert_hf_to_gguf.py draft --outfile draft.gguf --outtype q8_0",
        "llama-server -m target.gguf -md draft.gguf --spec-type draft-simple --spec-draft-n-max 4",
    ]


@pytest.mark.parametrize("to", ENGINES)
def test_an_automatic_gamma_becomes_a_number_and_a_note(models, tmp_path, to):
    described = json.loads(run(to, models, tmp_path / "out", "--json").output)
    assert "5" in described["load"]
    assert any(note.startswith("gamma = 'auto' has no counterpart") for note in described["notes"])


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("to", ENGINES)
def test_the_folder_holds_both_models_and_explains_itself(models, tmp_path, to):
    (models[0] / ".cache").mkdir()
    (models[1] / "provenance.json").write_text("{}")
    result = run(to, models, tmp_path / "out", "--gamma", "3")
    out = tmp_path / "out"
    for source, name in zip(models, ("target", "draft"), strict=True):
        assert (out / name / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert not (out / "target" / ".cache").exists()
    described = json.loads((out / "gkt-export.json").read_text())
    assert described["speculation"] == {
        "drafter": "model", "draft": "draft", "dtype": "auto", "gamma": 3, "verifier": "exact",
    }  # fmt: skip
    assert described["files"]["draft/provenance.json"]["bytes"] == 2
    for name, file in described["files"].items():
        assert file["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
    readme = (out / "README.md").read_text()
    for line in described["load"].splitlines():
        assert f"    {line}\n" in readme
        assert f"    {line}\n" in result.output
    assert all(f"- {note}\n" in readme and f"note: {note}\n" in result.output for note in described["notes"])


def test_llama_cpp_s_own_converter_runs_while_exporting(models, tmp_path):
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text(
        "import pathlib, sys\n"
        "source, _, output, _, outtype = sys.argv[1:]\n"
        "pathlib.Path(output).write_text(pathlib.Path(source).name + outtype)\n"
    )
    result = run("llama.cpp", models, tmp_path / "out", "--gamma", "3", "--set", f"converter={converter}", "--json")
    assert json.loads(result.output)["load"].startswith("llama-server -m target.gguf -md draft.gguf ")
    assert (tmp_path / "out" / "target.gguf").read_text() == "largeauto"
    assert (tmp_path / "out" / "draft.gguf").read_text() == "smallauto"
    assert not (tmp_path / "out" / "target").exists()


def test_a_converter_that_fails_is_quoted_and_nothing_is_left(models, tmp_path):
    converter = tmp_path / "convert.py"
    converter.write_text("raise SystemExit('no such tokenizer')")
    said = refusal("llama.cpp", models, tmp_path / "out", "--set", f"converter={converter}")
    assert "could not convert" in said
    assert "no such tokenizer" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["convert.py", "large", "small"]


@pytest.mark.parametrize("to", [*ENGINES, "transformers"])
def test_a_full_disk_leaves_nothing(models, tmp_path, monkeypatch, to):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    assert "cannot be written: [Errno 28] No space left on device; nothing is left of it" in refusal(
        to, models, tmp_path / "out"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "small"]


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("to", [*ENGINES, "transformers"])
def test_wrong_folders_are_refused_before_anything_is_written(models, tmp_path, to):
    target, draft = models
    output = tmp_path / "out"
    assert "target folder 'nowhere' has no config.json" in refusal(to, ("nowhere", draft), output)
    assert "has no config.json" in refusal(to, (target, tmp_path / "none"), output)
    pair = model(tmp_path / "t5", is_encoder_decoder=True)
    assert "encoder-decoder" in refusal(to, (pair, draft), output)
    assert "already has something in it" in refusal(to, models, draft)
    assert "inside the target's folder" in refusal(to, models, target / "out")
    assert not output.exists()


@pytest.mark.parametrize("to", ["vllm", "sglang"])
def test_vocabularies_of_different_size_are_named(tmp_path, to):
    models = model(tmp_path / "large", vocab_size=0, text_config={"vocab_size": 400}), model(tmp_path / "small")
    said = refusal(to, models, tmp_path / "out")
    assert "a draft with the target's vocabulary, got 320 tokens for the target's 400" in said


@pytest.mark.parametrize("to", ENGINES)
def test_a_leniency_that_the_stack_would_ignore_is_refused(models, tmp_path, to):
    config = tmp_path / "gkt.toml"
    config.write_text('[speculation]\ndrafter = "model"\ndraft = "small"\nverifier = "lenient"\nepsilon = 0.5\n')
    said = refusal(to, models, tmp_path / "out", "--config", config, draft=False)
    assert "verifies exactly, and the configuration says verifier = 'lenient'" in said


@pytest.mark.parametrize("to", ENGINES)
def test_a_drafter_that_is_no_model_is_refused(models, tmp_path, to):
    config = tmp_path / "gkt.toml"
    config.write_text('[speculation]\ndrafter = "prompt_lookup"\n')
    said = refusal(to, models, tmp_path / "out", "--config", config, draft=False)
    assert "is exported with drafter = 'model', got 'prompt_lookup'" in said


@pytest.mark.parametrize(
    ("to", "option", "message"),
    [
        ("vlm", "a=1", r"unknown exporter 'vlm'; did you mean 'vllm'?"),
        ("vllm", "draft_sample=1", "exporter 'vllm': draft_sample is not a known key; did you mean"),
        ("vllm", "draft_sample_method=beam", "draft_sample_method must be 'probabilistic' or 'greedy', got 'beam'"),
        ("sglang", "topk=2", "exporter 'sglang': topk is not a known key"),
        ("llama.cpp", "converter=nowhere.py", "converter must be the path of llama.cpp's convert_hf_to_gguf.py"),
        ("vllm", "greedy", "an override must be dotted.key=value, got 'greedy'"),
    ],
)
def test_options_of_a_stack_are_typed(models, tmp_path, to, option, message):
    assert message in refusal(to, models, tmp_path / "out", "--set", option)
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------- for plugin authors


class Stack:
    """A third party's exporter."""

    GKT_CONTRACT = 1

    def export(self, request):
        exported = Exported(request.output, "serve", ("slowly",))
        with staged(request) as folder:
            (folder / "written").touch()
        return exported

    @hookimpl
    def gkt_exporters(self):
        return {"mine": Factory(lambda options, context: self)}


def test_a_third_party_s_exporter_is_built_by_its_name(models, tmp_path):
    exporter = plugins_from(Stack()).exporters().build("mine", {}, BuildContext())
    section = load_config(text='[speculation]\ndrafter = "prompt_lookup"', env={}).speculation
    exported = exporter.export(ExportRequest(models[0], tmp_path / "out", section, tmp_path))
    assert exported == Exported(tmp_path / "out", "serve", ("slowly",))
    assert (tmp_path / "out" / "written").exists()


@pytest.mark.parametrize("to", [*ENGINES, "transformers"])
def test_exporting_loads_no_engine(models, tmp_path, to):
    arguments = ["export", "--to", to, "--target", models[0], "--draft", models[1], "--output", tmp_path / "out"]
    code = (
        "import sys; from gkt_plugins.cli import app\n"
        f"app({[*map(str, arguments)]!r}, standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'vllm', 'sglang'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
