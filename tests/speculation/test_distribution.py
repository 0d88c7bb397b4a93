"""Sampled answers have the target's own distribution, whatever the drafter; a wrong verifier is found out.

Answers of a few tokens over a tiny vocabulary are counted and compared with their exact probabilities, by Pearson's
chi-square over cells of at least five expected answers; the rarer ones share a cell. A right loop stays above the
significance level of 1e-4 except once in ten thousand times, and the seeds are fixed; the wrong verifiers below fall
under 1e-12 with the same answers.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from gkt_plugins.contracts import Drafter, Noise, Proposal, Sampling, TargetScores, Verdict, Verifier
from gkt_plugins.speculation.block_verifier import BlockVerifier
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.leniency import linear
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.prompt_lookup import PromptLookupDrafter
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import CausalTarget, TransformersModel
from gkt_plugins.speculation.verifiers import ExactVerifier, LenientVerifier
from gkt_plugins.testing.models import TableModel, sequence_probs

SIGNIFICANCE = 1e-4
LENGTH = 3
PROMPT = [0, 1]
SAMPLINGS = {
    "temperature 1": Sampling(temperature=1.0),
    "temperature 0.7": Sampling(temperature=0.7),
    "temperature 0.7, top-k 3": Sampling(temperature=0.7, top_k=3),
    "temperature 1, top-p 0.8": Sampling(temperature=1.0, top_p=0.8),
    "temperature 0.7, top-k 4, top-p 0.9": Sampling(temperature=0.7, top_k=4, top_p=0.9),
    "temperature 1, min-p 0.2": Sampling(temperature=1.0, min_p=0.2),
}


def answers(
    target: CausalTarget, drafter: Drafter | None, sampling: Sampling, n: int, verifier: Verifier | None = None
) -> Counter[int]:
    """How often each answer came, numbered as by ``sequence_probs``."""
    loop = DecodeLoop(target, drafter=drafter, verifier=verifier, gamma=2, max_batch=500)
    requests = [DecodeRequest(PROMPT, dataclasses.replace(sampling, max_tokens=LENGTH, seed=seed)) for seed in range(n)]
    counted: Counter[int] = Counter()
    for result in loop.run(requests):
        assert result.error is None
        number = 0
        for token in result.token_ids:
            number = number * target.vocab_size + token
        counted[number] += 1
    return counted


def p_value(counted: Counter[int], exact: Tensor) -> float:
    """Of the hypothesis that the answers were drawn from ``exact``."""
    n = counted.total()
    if any(exact[number] == 0 for number in counted):
        return 0.0
    observed, expected, rare_observed, rare_expected = [], [], 0, 0.0
    for number, probability in enumerate(exact.tolist()):
        if n * probability >= 5:
            observed.append(counted[number])
            expected.append(n * probability)
        else:
            rare_observed += counted[number]
            rare_expected += n * probability
    if rare_expected:
        observed.append(rare_observed)
        expected.append(rare_expected)
    return float(stats.chisquare(observed, expected).pvalue)


TABLE = TableModel.random(5, seed=3)
TABLE_DRAFTERS: dict[str, Callable[[], Drafter | None]] = {
    "no drafter": lambda: None,
    "an unlike drafter": lambda: TableModel.random(5, seed=4),
    "prompt lookup": lambda: PromptLookupDrafter(2),
}


@pytest.mark.parametrize("drafter", TABLE_DRAFTERS.values(), ids=TABLE_DRAFTERS)
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_answers_have_the_exact_distribution_of_a_table_model(sampling, drafter):
    exact = sequence_probs(TABLE.next_probs, PROMPT, LENGTH, sampling)
    assert p_value(answers(TABLE, drafter(), sampling, 6000), exact) > SIGNIFICANCE


@pytest.mark.parametrize("sampling", list(SAMPLINGS.values())[2:4], ids=list(SAMPLINGS)[2:4])
def test_answers_have_the_exact_distribution_of_a_llama_drafted_for_by_another(sampling, tiny, perturbed):
    model = tiny("llama", vocab_size=6)

    def next_probs(sequences: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.softmax(model(sequences).logits[:, -1].double(), -1)

    exact = sequence_probs(next_probs, PROMPT, LENGTH, sampling)
    drafter = ModelDrafter(TransformersModel(perturbed("llama", noise=0.1, vocab_size=6)), 6)
    assert p_value(answers(TransformersModel(model), drafter, sampling, 6000), exact) > SIGNIFICANCE


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_answers_have_the_exact_distribution_when_blocks_are_verified_as_a_whole(sampling):
    exact = sequence_probs(TABLE.next_probs, PROMPT, LENGTH, sampling)
    drafted = answers(TABLE, TableModel.random(5, seed=4), sampling, 6000, BlockVerifier())
    assert p_value(drafted, exact) > SIGNIFICANCE


class TooGenerous(ExactVerifier):
    """Accepts with 1.3 p/q."""

    def verify(self, proposal: Proposal, target: TargetScores, noise: Noise) -> Verdict:
        return super().verify(proposal, target, Noise(noise.accept / 1.3, noise.sample))


class ForgetsTheResidual(ExactVerifier):
    """Draws from p instead of max(0, p - q) after a rejection."""

    def verify(self, proposal: Proposal, target: TargetScores, noise: Noise) -> Verdict:
        verdict = super().verify(proposal, target, noise)
        p = target.probs()[torch.arange(len(verdict.accepted)), verdict.accepted]
        verdict.next_ids = (p.cumsum(-1) < noise.sample[:, None]).sum(-1).clamp(max=p.shape[1] - 1)
        return verdict


@pytest.mark.parametrize(
    "wrong", [TooGenerous(), ForgetsTheResidual(), LenientVerifier(linear, 0.5)], ids=lambda v: type(v).__name__
)
def test_a_verifier_that_changes_the_distribution_is_found_out(wrong):
    sampling = SAMPLINGS["temperature 1"]
    exact = sequence_probs(TABLE.next_probs, PROMPT, LENGTH, sampling)
    assert p_value(answers(TABLE, TableModel.random(5, seed=4), sampling, 6000, wrong), exact) < 1e-12
