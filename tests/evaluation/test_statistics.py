import numpy as np
import pytest

from gkt_plugins.evaluation.statistics import (
    mean_estimate,
    median_estimate,
    ratio_estimate,
    share_estimate,
    sums_estimate,
)


def test_wilson_interval_equals_scipy_s() -> None:
    from scipy.stats import binomtest

    for hits, n in [(0, 10), (3, 10), (279, 300), (500, 500)]:
        expected = binomtest(hits, n).proportion_ci(method="wilson")
        got = share_estimate(hits, n)
        assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_interval_over_the_median_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        values = list(generator.normal(1.3, 0.1, size=15))
        estimate = median_estimate(values, seed=trial, resamples=500)
        covered += estimate.low <= 1.3 <= estimate.high
    # nominal 0.95 for large samples; with 15 values the percentile bootstrap covers 0.90-0.97; 4 sigma is 0.05
    assert 0.87 <= covered / 300 <= 1.0


def test_an_estimate_says_when_its_interval_cannot_answer_the_question() -> None:
    estimate = mean_estimate([1.0, 1.1, 0.9, 1.2, 0.8])
    assert not estimate.excludes(1.0)
    assert estimate.excludes(2.0)


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_an_impossible_count_is_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= hits <= n"):
        share_estimate(hits, n)


def test_a_ratio_of_sums_weighs_items_by_their_size_and_an_exact_ratio_has_no_spread() -> None:
    assert ratio_estimate([1.0, 30.0], [2.0, 20.0]).value == pytest.approx(31 / 22)
    exact = ratio_estimate([1.0, 2.0, 7.0], [2.0, 4.0, 14.0])
    assert (exact.low, exact.value, exact.high) == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="at least 2 items"):
        ratio_estimate([1.0], [1.0])


def test_things_measured_on_the_same_items_are_compared_in_pairs() -> None:
    generator = np.random.default_rng(3)
    easy = generator.normal(10, 4, size=60)  # items differ much more than the two things measured on them
    first, second = easy + generator.normal(0, 0.1, size=60), easy + 0.3 + generator.normal(0, 0.1, size=60)
    ones = np.ones(60)
    paired = sums_estimate([first, ones, second], lambda sums: (sums[2] - sums[0]) / sums[1])
    # one standard error of a pair's difference is 0.14 / sqrt(60) = 0.018; unpaired it would be 0.7
    assert paired.value == pytest.approx(0.3, abs=4 * 0.018)
    assert paired.high - paired.low < 0.1
    assert paired.excludes(0)


def test_sums_over_one_item_have_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 items, got 1"):
        sums_estimate([[1.0], [2.0]], lambda sums: sums[0] / sums[1])
