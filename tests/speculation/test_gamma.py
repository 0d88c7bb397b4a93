"""``gamma = "auto"``, on a simulated machine: no clock, no model, fixed seeds."""

from __future__ import annotations

import random

import pytest

from gkt_plugins.speculation.gamma import FixedGamma, GammaController

# Milliseconds of a target call with k tokens per row, as measured for a 111 M parameter model on one core.
VERIFY = {
    1: [20.8, 26, 32, 37.4, 41, 45.2, 49, 53, 57],
    4: [41, 49, 57, 65.4, 73, 81, 89, 97, 105],
    8: [66.6, 77.8, 95, 115, 135, 154.6, 175, 195, 215],
    16: [81.6, 124.6, 165, 205, 245, 285, 330, 375, 420],
}
DRAFT_STEP = 0.7


def decode(policy, batch: int, alpha: float, seed: int, *, rows: int, tokens: int = 150, noise: float = 0.1) -> float:
    """Milliseconds to decode ``rows`` answers, refilling a batch of ``batch``; one step in thirty takes double."""
    rng = random.Random(seed)
    waiting, active, total = list(range(rows)), {}, 0.0
    drafted_rows: set[int] = set()
    while waiting or active:
        while waiting and len(active) < batch:
            active[waiting.pop()] = tokens
        gamma = min(policy.choose(len(active)), max(active.values()) - 1)
        nearest = min(VERIFY, key=lambda size: abs(size - len(active)))
        cost = VERIFY[nearest][gamma] + gamma * DRAFT_STEP
        cost *= max(0.5, rng.gauss(1, noise)) * (2.0 if rng.random() < 1 / 30 else 1.0)
        drafted, accepted = [], []
        for row, left in active.items():
            limit = min(gamma, left - 1)
            kept = 0
            while kept < limit and rng.random() < alpha:
                kept += 1
            drafted.append(limit)
            accepted.append(kept)
            active[row] -= kept + 1
        policy.observe(len(active), gamma, cost, drafted, accepted, steady=set(active) <= drafted_rows)
        drafted_rows = set(active) if gamma else set()
        active = {row: left for row, left in active.items() if left > 0}
        total += cost
    return total


class Plain:
    def choose(self, batch: int) -> int:
        return 0

    def observe(self, *args, **kwargs) -> None:
        pass


def mean_speedup(policy, batch: int, alpha: float) -> float:
    """Against plain decoding, over three seeds."""
    rows = 3 * batch
    plain = sum(decode(Plain(), batch, alpha, seed, rows=rows) for seed in range(3))
    return plain / sum(decode(policy(), batch, alpha, seed, rows=rows) for seed in range(3))


@pytest.mark.parametrize("batch", [1, 4, 8, 16])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6, 0.9])
def test_it_is_never_slower_than_plain_decoding_by_more_than_three_percent(batch, alpha):
    assert mean_speedup(GammaController, batch, alpha) >= 0.97


@pytest.mark.parametrize("batch", [1, 4, 8, 16])
@pytest.mark.parametrize("alpha", [0.6, 0.9])
def test_it_comes_close_to_the_best_fixed_gamma(batch, alpha):
    best = max(mean_speedup(lambda gamma=gamma: FixedGamma(gamma), batch, alpha) for gamma in (1, 2, 3, 4, 5, 6, 8))
    assert mean_speedup(GammaController, batch, alpha) >= 0.93 * max(best, 1.0)


def settled(controller: GammaController, batch: int, alpha: float, *, seed: int = 0) -> int:
    decode(controller, batch, alpha, seed, rows=4 * batch, noise=0.02)
    choices = [controller.choose(batch) for _ in range(20)]
    return max(set(choices), key=choices.count)


def test_it_switches_off_where_drafts_are_not_accepted():
    assert settled(GammaController(), 16, 0.05) == 0


def test_it_drafts_more_when_more_is_accepted_and_less_in_larger_batches():
    assert settled(GammaController(), 1, 0.9) > settled(GammaController(), 1, 0.5) >= 1
    assert settled(GammaController(), 16, 0.9) < settled(GammaController(), 1, 0.95)


def test_it_switches_on_again_when_acceptance_returns():
    controller = GammaController()
    assert settled(controller, 4, 0.02) == 0
    decode(controller, 4, 0.95, 1, rows=60)
    assert settled(controller, 4, 0.95) > 0


def test_what_one_batch_size_taught_serves_another():
    controller = GammaController()
    settled(controller, 8, 0.9)
    assert controller.choose(9) > 0  # at once, without measuring plain steps first


def test_blocks_with_new_rows_do_not_spoil_the_costs():
    controller = GammaController()
    for _ in range(5):
        controller.observe(1, 0, 1.0, [0], [0], steady=True)
        controller.observe(1, 3, 1.1, [3], [3], steady=True)
    before = controller.expected_speedup(1, 3)
    controller.observe(1, 3, 50.0, [3], [3], steady=False)
    assert controller.expected_speedup(1, 3) >= before


def test_expected_tokens_follow_the_acceptance_of_each_position():
    controller = GammaController((2,))
    for _ in range(3000):
        controller.observe(1, 2, 1.0, [2], [1], steady=True)  # the first always passes, the second never
    assert controller.expected_tokens(2) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("options", [(), (0, 1), (-2,)])
def test_options_below_one_are_refused(options):
    with pytest.raises(ValueError, match="gammas of at least 1"):
        GammaController(options)
