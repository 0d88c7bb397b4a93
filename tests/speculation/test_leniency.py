"""Leniency rules, for every kind of number they meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gkt_plugins.speculation.leniency import CappedRule, check_epsilon, exponential, linear, square

RULES = {"linear": linear, "square": square, "exponential": exponential, "capped": CappedRule(0.1)}
PROBABILITIES = [0.0, 1e-6, 0.05, 0.3, 0.9, 1.0]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_at_epsilon_one_a_rule_gives_back_p(rule):
    assert np.allclose(rule(np.array(PROBABILITIES), 1.0), PROBABILITIES)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 0.9])
def test_a_rule_never_makes_a_token_less_likely_to_pass(rule, epsilon):
    assert (rule(np.array(PROBABILITIES), epsilon) >= np.array(PROBABILITIES)).all()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_floats_numpy_and_torch_give_the_same(rule):
    by_float = [rule(p, 0.3) for p in PROBABILITIES]
    assert np.allclose(rule(np.array(PROBABILITIES), 0.3), by_float)
    assert np.allclose(rule(torch.tensor(PROBABILITIES, dtype=torch.float64), 0.3).numpy(), by_float)


def test_the_rules_are_the_published_ones():
    assert linear(0.2, 0.5) == pytest.approx(0.4)
    assert square(0.2, 0.5) == pytest.approx(0.8)
    assert exponential(0.25, 0.5) == pytest.approx(0.5)


def test_the_capped_rule_adds_no_more_than_delta():
    assert CappedRule(0.1)(0.3, 0.1) == pytest.approx(0.4)
    assert CappedRule(0.1)(0.02, 0.5) == pytest.approx(0.04)


@pytest.mark.parametrize("epsilon", [0, -0.1, 1.01, float("nan")])
def test_leniency_out_of_range_says_what_is_allowed(epsilon):
    with pytest.raises(ValueError, match=r"leniency must be in \(0, 1\]"):
        check_epsilon(epsilon)


def test_delta_out_of_range_says_what_is_allowed():
    with pytest.raises(ValueError, match=r"delta must be in \[0, 1\], got 2"):
        CappedRule(2)
