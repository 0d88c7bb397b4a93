"""The closed forms, against values that are known and against simulation."""

from __future__ import annotations

import random

import pytest

from gkt_plugins.speculation.formulas import (
    accept_probability,
    acceptance_tv,
    best_gamma,
    block_efficiency,
    mbsu,
    sequence_acceptance,
    speedup,
    total_variation,
)


def test_block_efficiency_of_the_published_example_is_3_60():
    assert block_efficiency(0.75, 7) == pytest.approx(3.60, abs=0.005)


@pytest.mark.parametrize(
    ("cost", "gamma", "expected"), [(0.01, 7, 2.30), (0.02, 6, 2.17), (0.05, 4, 1.92), (0.1, 3, 1.67)]
)
def test_the_best_gamma_and_its_speedup_at_alpha_0_6_are_the_known_ones(cost: float, gamma: int, expected: float):
    assert best_gamma(0.6, cost) == gamma
    assert speedup(0.6, gamma, cost) == pytest.approx(expected, abs=0.005)


def test_block_efficiency_is_bounded_by_one_and_gamma_plus_one():
    assert block_efficiency(0.0, 5) == 1
    assert block_efficiency(1.0, 5) == 6


def test_block_efficiency_agrees_with_simulated_blocks():
    rng = random.Random(0)
    alpha, gamma, blocks = 0.6, 4, 20_000
    tokens = 0
    for _ in range(blocks):
        accepted = 0
        while accepted < gamma and rng.random() < alpha:
            accepted += 1
        tokens += accepted + 1
    # A block has between 1 and 5 tokens, so its standard deviation is at most 2: four of its mean's are 0.057.
    assert tokens / blocks == pytest.approx(block_efficiency(alpha, gamma), abs=0.057)


def test_expected_acceptance_is_one_minus_total_variation():
    p, q = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
    assert total_variation(p, q) == pytest.approx(0.4)
    assert acceptance_tv(p, q) == pytest.approx(sum(b * accept_probability(a, b) for a, b in zip(p, q, strict=True)))


def test_acceptance_of_answers_weighs_every_token_alike():
    assert sequence_acceptance([[0.1, 0.3], [0.5]]) == pytest.approx(0.7)


def test_mbsu_is_the_speedup_at_the_ratio_of_parameters():
    assert mbsu(0.6, 4, 5, 100) == speedup(0.6, 4, 0.05)


def test_no_token_drawn_from_the_draft_can_have_probability_zero():
    with pytest.raises(ValueError, match=r"q must be in \(0, 1\]"):
        accept_probability(0.5, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: block_efficiency(1.5, 3), r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: block_efficiency(0.5, -1), "gamma must be at least 0, got -1"),
        (lambda: speedup(0.5, 3, -0.1), "cost must be at least 0, got -0.1"),
        (lambda: best_gamma(0.5, 0.1, gammas=()), "at least one gamma"),
        (lambda: total_variation([1.0], [0.5, 0.5]), "sizes 1 and 2"),
        (lambda: sequence_acceptance([]), "at least one token"),
        (lambda: mbsu(0.5, 3, 1, 0), "parameters must be"),
    ],
)
def test_impossible_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
