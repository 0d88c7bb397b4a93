"""``gkt acceptance``, with the demo pair."""

from __future__ import annotations

import json
import shutil

import pytest

from gkt_plugins.cli import main
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems

TARGET, DRAFT = str(model_dir("teacher")), str(model_dir("draft"))


@pytest.fixture
def gkt(capsys, monkeypatch, tmp_path):
    """Run ``gkt acceptance`` on six problems, short answers; gives exit code, standard output and standard error."""
    monkeypatch.delenv("GKT_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "prompts.jsonl").open("w") as file:
        for problem in problems(81_000_000, 6, split="test"):
            line = {"messages": [{"role": "user", "content": problem.question}], "family": problem.family}
            file.write(json.dumps(line) + "\n")

    def gkt(*arguments: str, prompts: str = "prompts.jsonl", draft: str = DRAFT, target: str = TARGET):
        asked = ["acceptance", "--target", target, "--draft", draft, "--prompts", prompts]
        with pytest.raises(SystemExit) as caught:
            main([*asked, "--max-tokens", "40", "--gamma-max", "3", "--device", "cpu", *arguments])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return gkt


def test_tables_show_every_gamma_place_and_family(gkt):
    code, out, _ = gkt("--temperature", "0")
    assert code == 0
    assert "temperature 0, 6 prompts" in out
    for title in ("Tokens per target call", "By place in a block of 3", "By family of problems"):
        assert title in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows if len(row) == 4][:3] == ["1", "2", "3"]


def test_json_has_both_drafts_both_temperatures_and_the_comparison(gkt):
    code, out, _ = gkt("--against", DRAFT, "--json")
    assert code == 0
    measured = json.loads(out)
    assert [report["temperature"] for report in measured["drafts"]["draft"]["temperatures"]] == [0.0, 1.0]
    assert measured["drafts"]["draft"]["temperatures"] == measured["drafts"]["against"]["temperatures"]
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert [entry["acceptance_tv_difference"] for entry in measured["comparison"]] == [nothing, nothing]
    assert set(measured["comparison"][0]["block_efficiency_ratio"]) == {"1", "2", "3"}
    assert measured["training"] is None


def test_the_training_figure_of_the_draft_is_held_against_the_loop(gkt, tmp_path):
    folder = tmp_path / "distilled"
    shutil.copytree(DRAFT, folder)
    after = {"value": 0.999, "low": 0.998, "high": 1.0, "n": 50}
    (folder / "provenance.json").write_text(json.dumps({"acceptance": {"temperature": 1.0, "after": after}}))
    code, out, _ = gkt("--temperature", "1", draft=str(folder))
    assert code == 0
    assert "they differ by more than their intervals" in " ".join(out.split())
    code, out, _ = gkt("--temperature", "0", draft=str(folder))
    assert code == 0
    assert "add --temperature 1 to hold it against the loop" in " ".join(out.split())


def test_block_verification_is_measured_on_demand(gkt):
    code, out, _ = gkt("--temperature", "1", "--verifier", "block", "--json")
    assert code == 0
    assert json.loads(out)["verifier"] == "block"


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["--verifier", "lenient"], {}, "--verifier must be lossless, got 'lenient'"),
        ([], {"draft": "./none"}, "--draft: there is no folder ./none"),
        ([], {"target": "./none"}, "--target: there is no folder ./none"),
        ([], {"draft": str(model_dir("student"))}, "--draft: the draft's tokenizer differs from the target's"),
        ([], {"prompts": "none.jsonl"}, "none.jsonl"),
        ([], {"prompts": "few.jsonl"}, "expected at least 5 prompts to measure on, got 1 of few.jsonl"),
        (["--max-tokens", "5000"], {}, "--max-tokens must be less than the target's context of 1024, got 5000"),
        (["--device", "abacus"], {}, "--device 'abacus' cannot be used"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence_and_exit_code_2(gkt, tmp_path, arguments, changes, message):
    (tmp_path / "few.jsonl").write_text('{"prompt": "one"}\n')
    code, out, err = gkt(*arguments, **changes)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
