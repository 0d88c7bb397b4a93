"""``gkt plan`` on small trained models: the answer, the exit code, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.cli import main
from gkt_plugins.demo.expensive import Size, make_expensive
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems

QUICK = ("--batch", "1", "--gamma-max", "3", "--max-tokens", "24", "--budget-s", "30", "--dtype", "float32")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    asked = [{"messages": [{"role": "user", "content": p.question}]} for p in problems(0, 4, split="test")]
    file.write_text("".join(json.dumps(line) + "\n" for line in asked))
    return file


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """The demo target with eight times its layers, which add nothing: it says what the small one says, and is dear."""
    folder = tmp_path_factory.mktemp("deep")
    small = AutoModelForCausalLM.from_pretrained(model_dir("teacher"), dtype=torch.float32)
    size = Size(small.config.hidden_size, small.config.intermediate_size, 8 * small.config.num_hidden_layers)
    make_expensive(small, size).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir("teacher")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clueless(tmp_path_factory):
    """A model of the demo target's shape that never says what that says: its favourites are reversed."""
    folder = tmp_path_factory.mktemp("clueless")
    model = AutoModelForCausalLM.from_pretrained(model_dir("teacher"), dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir("teacher")).save_pretrained(folder)
    return folder


@pytest.fixture
def gkt(capsys, monkeypatch):
    """Run ``gkt plan``; gives exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "160")

    def gkt(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["plan", *map(str, arguments)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return gkt


def test_a_draft_that_is_always_right_and_far_cheaper_is_enabled(gkt, deep, prompts):
    code, out, _ = gkt("--target", deep, "--draft", model_dir("teacher"), "--prompts", prompts, *QUICK)
    assert "enable: batch 1: gamma" in " ".join(out.split())
    assert "do not enable" not in out
    assert code == 0


def test_a_draft_that_is_never_right_is_not_enabled(gkt, clueless, prompts):
    code, out, _ = gkt("--target", model_dir("teacher"), "--draft", clueless, "--prompts", prompts, *QUICK, "--json")
    assert code == 3
    found = json.loads(out)
    assert found["decision"] == "do not enable"
    assert found["acceptance"][2]["acceptance_rate"]["value"] < 0.1
    assert [(cell["batch"], cell["gamma"]) for cell in found["cells"]] == [(1, 1), (1, 2), (1, 3)]
    assert found["answers"] == 4
    assert "a draft step takes" in found["reason"]


def test_the_speculation_of_a_configuration_can_be_planned_for(gkt, prompts, tmp_path):
    file = tmp_path / "gkt.toml"
    file.write_text('[speculation]\ndrafter = "prompt_lookup"\nverifier = "lenient"\nepsilon = 0.5\n')
    code, out, _ = gkt("--target", model_dir("teacher"), "--config", file, "--prompts", prompts, *QUICK, "--json",
                       "--temperature", "1")  # fmt: skip
    found = json.loads(out)
    assert code == {"enable": 0, "do not enable": 3}[found["decision"]]
    assert len(found["acceptance"]) == 3


def test_the_table_has_every_gamma_and_marks_the_best(gkt, prompts):
    folder = model_dir("teacher")
    code, out, _ = gkt("--target", folder, "--draft", model_dir("draft"), "--prompts", prompts, *QUICK)
    assert code in (0, 3)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows[:3]] == ["1", "2", "3"]
    assert sum("▸" in row[3] for row in rows[:3]) == 1
    assert "4 answers, measured in" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either --draft or --config, got both or neither"),
        (["--draft", "d", "--config", "gkt.toml"], "expected either --draft or --config, got both or neither"),
        (["--draft", "./none"], "speculation.draft: there is no folder"),
        (["--draft", model_dir("draft"), "--dtype", "int8"], "--dtype must be auto, float32, float16 or bfloat16"),
        (["--draft", model_dir("student")], "vocabulary"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence_and_exit_code_2(gkt, prompts, arguments, message):
    code, out, err = gkt("--target", model_dir("teacher"), "--prompts", prompts, *QUICK, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("error:") == 1


def test_a_target_that_is_not_there_is_named(gkt, prompts):
    code, _, err = gkt("--target", "./none", "--draft", model_dir("draft"), "--prompts", prompts)
    assert code == 2
    assert "--target: there is no folder ./none" in err


def test_a_configuration_without_speculation_is_refused(gkt, prompts, tmp_path):
    (tmp_path / "gkt.toml").write_text("")
    code, _, err = gkt("--target", model_dir("teacher"), "--config", tmp_path / "gkt.toml", "--prompts", prompts)
    assert code == 2
    assert "has no [speculation] section; add one, or name a --draft" in err


def test_prompts_that_are_not_there_are_exit_code_2(gkt, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    for file in ("empty.jsonl", "none.jsonl"):
        code, _, err = gkt(
            "--target", model_dir("teacher"), "--draft", model_dir("draft"), "--prompts", tmp_path / file, *QUICK
        )
        assert code == 2
        assert file in err
