"""``gkt distill``: the file, the bar, the report, and one sentence for what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.cli import main
from gkt_plugins.contracts import TraceEvent
from gkt_plugins.distill.options import load_options
from gkt_plugins.distill.traffic import TrafficRecorder
from gkt_plugins.errors import ConfigError

CONFIG = """\
output = "out"
[models]
target = "{models}/target"
draft = "{models}/draft"
device = "cpu"
[data]
prompts = "{models}/prompts.jsonl"
max_new_tokens = 8
held_out = 0.2
[train]
steps = 4
batch_size = 4
save_steps = 2
[evaluation]
every = 2
"""


@pytest.fixture
def folder(tmp_path, tiny_models, monkeypatch) -> Path:
    (tmp_path / "distill.toml").write_text(CONFIG.format(models=tiny_models))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    """The exit code of ``gkt distill``."""
    try:
        main(["distill", *arguments])
    except SystemExit as exc:
        return int(exc.code or 0)
    return 0


def test_the_draft_can_be_loaded_and_speaks_with_the_targets_tokenizer(folder, tiny_models, capsys):
    assert run() == 0
    assert capsys.readouterr().out.endswith(f"wrote {folder / 'out'}\n")
    AutoModelForCausalLM.from_pretrained(folder / "out")
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (folder / "out", tiny_models / "target"))
    assert ours.get_vocab() == theirs.get_vocab()


def test_the_report_as_json_has_losses_acceptance_and_tokens(folder, capsys):
    assert run("--json", "--set", "train.steps=2") == 0
    report = json.loads(capsys.readouterr().out)
    assert [step for step, _ in report["losses"]] == [1, 2]
    assert report["steps"] == 2
    assert report["tokens"] > 0
    assert {"value", "low", "high", "n"} == report["before"].keys() == report["after"].keys()


def test_curves_are_there_for_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run() == 0
    curves = EventAccumulator(str(folder / "out" / "runs")).Reload()
    assert [event.step for event in curves.Scalars("eval/acceptance")] == [0, 2, 4]
    assert [event.step for event in curves.Scalars("train/loss")] == [1, 2, 3, 4]


def test_a_run_continues_from_the_command_line(folder, capsys):
    assert run("--set", "train.steps=4", "--json") == 0
    whole = json.loads(capsys.readouterr().out)
    (folder / "out" / "provenance.json").unlink()
    assert run("--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["losses"] == whole["losses"]


def test_recorded_traffic_is_trained_on(folder, capsys):
    lines = (folder / "distill.toml").read_text().splitlines()
    (folder / "distill.toml").write_text("\n".join(line for line in lines if not line.startswith("prompts")))
    record_traffic(folder / "traffic.jsonl")
    assert run("--from-traffic", "traffic.jsonl", "--set", "data.policy=ground_truth", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 4 * 4 * 3


def record_traffic(path: Path) -> None:
    """Twenty answers of three tokens, through the recorder itself."""
    recorder = TrafficRecorder(path)
    for n in range(20):
        told = TraceEvent(str(n), (5 + n, 6), drafted=(7, 8), accepted=2, kept=(7, 8, 1), prompt_tokens=2, row=n)
        recorder(replace(told, finished=True))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.lerning_rate=1", "train.lerning_rate is not a known key (override 'train.lerning_rate=1'); "),
        ("train.steps=0", "train.steps must be greater than 0, got 0 (override 'train.steps=0')"),
        ("data.policy=drafted", "data.policy must be 'ground_truth', 'target', 'draft', "),
        ("data.lambda=2", "data.lambda must be at most 1, got 2 (override 'data.lambda=2')"),
        ("train.accumulation=3", "train needs batch_size divisible by accumulation, got 4 and 3 (distill.toml, "),
        ("loss.keep=0.4", "loss needs both keep < 1 and reference, or neither, got 0.4 and None (distill.toml)"),
        ("data.prompts=none.jsonl", "cannot read the prompts"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_key_and_place(folder, capsys, override, sentence):
    assert run("--set", override) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert sentence in err
    assert not (folder / "out" / "config.json").exists()


def test_a_launch_with_fsdp_is_refused_in_one_line_that_says_how_to_launch(folder, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert run() == 2
    err = capsys.readouterr().err
    assert err.startswith("error: a draft cannot be distilled with FSDP, ")
    assert "launch with --multi_gpu instead of --use_fsdp" in err
    assert len(err.splitlines()) == 1
    assert not (folder / "out" / "options.json").exists()


def test_a_wrong_key_in_the_file_has_its_line(folder):
    path = folder / "distill.toml"
    path.write_text(path.read_text() + "[los]\n")
    with pytest.raises(
        ConfigError, match=r"^los is not a known key \(distill\.toml, line 16\); did you mean 'loss'\?$"
    ):
        load_options(Path("distill.toml"))


def test_no_file_is_one_sentence(folder, capsys):
    assert run("--config", "other.toml") == 2
    assert (
        capsys.readouterr().err
        == "error: there is no configuration at 'other.toml'; write one there, or give its path\n"
    )


def test_paths_start_in_the_folder_of_the_file(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_options(folder / "distill.toml").output_dir == folder / "out"
