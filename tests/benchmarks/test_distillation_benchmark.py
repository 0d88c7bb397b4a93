import pytest
import torch

from benchmarks._report import Report
from benchmarks.distillation._drift import greedy_drift, lenient_distribution, sampled_drift
from benchmarks.distillation._setting import load_part, markdown, save_part
from gkt_plugins.contracts import Noise, Proposal
from gkt_plugins.speculation.leniency import CappedRule, exponential, linear, square
from gkt_plugins.speculation.scores import KnownScores
from gkt_plugins.speculation.verifiers import LenientVerifier

RULES = (linear, square, exponential, CappedRule())


def distributions(*, seed: int, rows: int = 1, vocab: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(rows, vocab, generator=generator, dtype=torch.float64).mul(2).softmax(-1) for _ in range(2))
    return p, q


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("epsilon", [1.0, 0.5, 0.1])
def test_a_lenient_distribution_adds_up_to_one(rule, epsilon):
    p, q = distributions(seed=0, rows=50)
    lenient = lenient_distribution(p, q, rule, epsilon)
    assert (lenient >= 0).all()
    torch.testing.assert_close(lenient.sum(-1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("rule", RULES)
def test_without_leniency_nothing_drifts(rule):
    p, q = distributions(seed=1, rows=50)
    assert sampled_drift(p, q, rule, 1.0).max() < 1e-12
    assert sampled_drift(p, p, rule, 1.0).max() < 1e-12
    assert greedy_drift(p, q, 1.0).max() == 0


def test_the_lenient_distribution_is_what_the_verifier_gives():
    p, q = distributions(seed=2)
    n = 200_000
    generator = torch.Generator().manual_seed(3)
    ids = torch.multinomial(q[0], n, replacement=True, generator=generator)[:, None]
    noise = Noise(torch.rand(n, 1, generator=generator), torch.rand(n, generator=generator))
    rows = p.float().expand(n, 2, -1)
    verdict = LenientVerifier(square, 0.5).verify(Proposal(ids, q.float().expand(n, 1, -1)), KnownScores(rows), noise)
    first = torch.where(verdict.accepted > 0, ids[:, 0], verdict.next_ids)
    frequencies = torch.bincount(first, minlength=6) / n
    expected = lenient_distribution(p, q, square, 0.5)[0]
    assert float((frequencies - expected).abs().max()) < 4 * (0.25 / n) ** 0.5  # of a share: at most sqrt(1/4n)
    assert float(sampled_drift(p, q, square, 0.5)[0]) > 0.02


def test_greedy_drift_counts_where_a_lenient_token_is_not_the_targets_own():
    p = torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.5, 0.4, 0.1]], dtype=torch.float64)
    q = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.1, 0.0, 0.9]], dtype=torch.float64)
    assert greedy_drift(p, q, 0.5).tolist() == [0, 1, 0]


def test_a_part_that_was_not_run_again_is_read_as_it_was_written(tmp_path):
    report = Report("cells", quick=False)
    report.put("block_efficiency_gain_t0", 1.234)
    report.goal("block_efficiency_gain_t0", ">=", 1.15)
    save_part(report, tmp_path)
    found = load_part("cells", tmp_path)
    assert found is not None
    assert found.figures == report.figures
    assert found.verdicts() == {"block_efficiency_gain_t0": "reached (>= 1.15)"}
    assert load_part("transfer", tmp_path) is None


def test_a_table_shows_numbers_intervals_and_gaps():
    text = markdown(
        [{"rule": "linear", "gain": 1.23456, "interval": [1.0, 1.5], "cap": None}], ["rule", "gain", "interval", "cap"]
    )
    assert text.splitlines()[-1] == "| linear | 1.235 | 1.000 – 1.500 |  |"
