"""Figures of a draft, and of two drafts side by side, from what was counted on each prompt."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from gkt_plugins.distill.acceptance_report import AcceptanceReport, PromptAcceptance, compare
from gkt_plugins.distill.acceptance_tables import show
from gkt_plugins.distill.training_figures import TrainingFigure, read_training_figure
from gkt_plugins.errors import ConfigError
from gkt_plugins.evaluation.statistics import Estimate
from gkt_plugins.speculation.counts import Counts

GAMMA = 2


def prompt(number: int, accepted: int, *, blocks: int = 20, overlap: float = 0.7, family: str = "") -> PromptAcceptance:
    """A prompt with 100 answer tokens. Of each block of two, the second token is tested when the first is accepted."""
    first = min(accepted, blocks)
    second = accepted - first
    counts = Counts(drafted=GAMMA * blocks, tested=blocks + first, accepted=accepted, bonus=second, blocks=blocks)
    positions = ((blocks, first), (first, second))
    return PromptAcceptance((number,), family, 100, 100 * overlap, {GAMMA: counts}, positions)


def report(
    accepted: list[int], *, temperature: float = 1.0, overlap: float = 0.7, families: str = ""
) -> AcceptanceReport:
    names = (families.split() * len(accepted))[: len(accepted)] or [""] * len(accepted)
    rows = [prompt(n, a, overlap=overlap, family=name) for n, (a, name) in enumerate(zip(accepted, names, strict=True))]
    return AcceptanceReport(temperature, (GAMMA,), tuple(rows))


def test_figures_are_ratios_of_sums_over_prompts():
    one = report([10, 20, 30, 20, 20, 20])
    assert one.tokens == 600
    assert one.acceptance_tv.value == pytest.approx(0.7)
    assert one.block_efficiency(GAMMA).value == (120 + 120) / 120
    assert one.acceptance_rate(GAMMA).value == pytest.approx(120 / (120 + 110))
    assert [place.value for place in one.by_position] == pytest.approx([110 / 120, 10 / 110])
    assert one.counts(GAMMA).blocks == 120


def test_intervals_are_over_prompts():
    alike, unlike = report([20] * 30), report([5, 35] * 15)
    assert alike.block_efficiency(GAMMA).value == unlike.block_efficiency(GAMMA).value
    assert alike.block_efficiency(GAMMA).low == alike.block_efficiency(GAMMA).high
    assert unlike.block_efficiency(GAMMA).low < 1.9
    assert unlike.block_efficiency(GAMMA).n == 30


def test_the_prediction_takes_acceptance_for_the_same_at_every_token():
    predicted = report([20] * 6, overlap=0.5).predicted_block_efficiency(GAMMA)
    assert predicted.value == pytest.approx(1 + 0.5 + 0.25)


def test_so_few_prompts_say_nothing_of_others():
    few = report([10, 30])
    assert few.block_efficiency(GAMMA) == Estimate(2.0, 1.0, 3.0, 2)
    assert few.acceptance_tv == Estimate(0.7, 0.0, 1.0, 2)


def test_prompts_whose_answer_is_one_token_are_not_in_the_loop_s_figures():
    short = PromptAcceptance((9,), "", 1, 1.0, {GAMMA: Counts()}, ((0, 0), (0, 0)))
    whole = report([20] * 6)
    longer = AcceptanceReport(1.0, (GAMMA,), (*whole.prompts, short))
    assert longer.block_efficiency(GAMMA) == whole.block_efficiency(GAMMA)
    alone = AcceptanceReport(1.0, (GAMMA,), (short,))
    assert alone.as_json()["by_gamma"]["2"]["block_efficiency"] == {"value": None, "low": 1.0, "high": 3.0}


def test_families_are_reports_of_their_own():
    families = report([10, 30] * 6, families="farm shop").by_family
    assert list(families) == ["farm", "shop"]
    assert families["farm"].block_efficiency(GAMMA).value == 1.5
    assert families["shop"].block_efficiency(GAMMA).value == 2.5
    assert report([10] * 6).by_family == {}


def test_a_comparison_is_made_in_pairs_of_prompts():
    rng = random.Random(1)
    before = [rng.randrange(5, 33) for _ in range(40)]
    after = [accepted + 2 for accepted in before]
    gain = compare(report(before), report(after, overlap=0.75))
    assert gain.acceptance_tv.value == pytest.approx(0.05)
    ratio = gain.block_efficiency[GAMMA]
    assert ratio.value == pytest.approx((sum(after) + 800) / (sum(before) + 800))
    # prompts differ by far more than the two drafts do: only pairs can tell them apart this well
    assert ratio.low > 1.04
    apart = report(before).block_efficiency(GAMMA)
    assert apart.high > report(after).block_efficiency(GAMMA).low


def test_a_draft_compared_with_itself_differs_by_nothing():
    one = report([10, 20, 30, 20, 12, 20])
    gain = compare(one, one)
    assert (gain.acceptance_tv.low, gain.acceptance_tv.high) == (0.0, 0.0)
    assert (gain.block_efficiency[GAMMA].low, gain.block_efficiency[GAMMA].high) == (1.0, 1.0)


def test_only_like_can_be_compared():
    one = report([20] * 6)
    with pytest.raises(ValueError, match=r"one temperature, got 1\.0 and 0\.0"):
        compare(one, report([20] * 6, temperature=0.0))
    with pytest.raises(ValueError, match="the same prompts in the same order"):
        compare(one, report([20] * 7))
    with pytest.raises(ValueError, match="at least 5 prompts, got 4"):
        compare(report([20] * 4), report([20] * 4))


def test_the_tables_fit_80_columns_and_show_the_gain():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(report([20, 10] * 6, families="farm shop"), console, against=report([10, 5] * 6))
    text = console.export_text()
    assert "other draft" in text
    assert "farm" in text
    assert f"{(180 + 240) / (90 + 240):.3f}" in text
    assert "…" not in text


PROVENANCE = {"acceptance": {"temperature": 1.0, "after": {"value": 0.8, "low": 0.78, "high": 0.82, "n": 64}}}


def write(folder: Path, content: object) -> Path:
    (folder / "provenance.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_draft_without_provenance_has_no_training_figure(tmp_path):
    assert read_training_figure(tmp_path) is None


@pytest.mark.parametrize("content", ["{", {}, {"acceptance": {"temperature": "warm", "after": {}}}, []])
def test_a_broken_provenance_is_named(tmp_path, content):
    with pytest.raises(ConfigError, match=r"provenance\.json does not say what the draft reached in training"):
        read_training_figure(write(tmp_path, content))


def test_training_and_loop_agree_while_their_intervals_meet(tmp_path):
    figure = read_training_figure(write(tmp_path, PROVENANCE))
    assert figure == TrainingFigure(1.0, Estimate(0.8, 0.78, 0.82, 64))
    counted = report([22, 30] * 5)  # (20 + 2) / 40 and (20 + 10) / 40: 0.55 and 0.75, together 0.65
    assert figure.check([report([22, 30] * 5, temperature=0.0)]) is None
    differs = figure.check([counted])
    assert not differs.agrees
    assert "training gave acceptance 0.800 [0.780, 0.820]; the decode loop counts 0.650 [" in differs.sentence()
    assert "they differ by more than their intervals" in differs.sentence()
    agrees = TrainingFigure(1.0, Estimate(0.7, 0.68, 0.72, 64)).check([counted])
    assert agrees.as_json()["agrees"] is True
    assert agrees.sentence().endswith("they agree.")
