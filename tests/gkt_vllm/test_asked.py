"""What requests may ask for, and what becomes of nonsense."""

from types import SimpleNamespace

import pytest

from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.leniency import linear
from gkt_vllm.asked import Leniency, asked_gamma, check_epsilon, check_gamma


def params(**extra):
    return SimpleNamespace(extra_args=extra or None)


LENIENCY = Leniency(linear, epsilon=0.8, least=0.5)


def test_a_request_that_does_not_ask_gets_the_configured_leniency():
    assert LENIENCY.asked(params()) == 0.8


def test_a_request_may_ask_for_less_and_for_more_down_to_the_bound():
    assert LENIENCY.asked(params(gkt_epsilon=1)) == 1.0
    assert LENIENCY.asked(params(gkt_epsilon=0.5)) == 0.5


@pytest.mark.parametrize("nonsense", [0.4, 0, -1, 2, "0.6", True, None, float("nan"), [0.6]])
def test_what_is_beyond_the_bound_or_no_leniency_is_lossless(nonsense):
    assert LENIENCY.asked(params(gkt_epsilon=nonsense)) == 1.0


def test_the_refusal_names_the_bound_and_its_key():
    with pytest.raises(ConfigError, match=r"gkt_epsilon is 0\.4, and the operator allows 0\.5 at least here \(vllm"):
        check_epsilon(0.4, 0.5)
    with pytest.raises(ConfigError, match="no leniency here"):
        check_epsilon(0.9, 1.0)


def test_a_draft_length_of_its_own_is_bounded_by_the_servers():
    assert [asked_gamma(params(gkt_gamma=gamma), 4) for gamma in (0, 2, 9)] == [0, 2, 4]
    assert asked_gamma(params(), 4) == 4
    assert asked_gamma(params(gkt_gamma="many"), 4) == 4


@pytest.mark.parametrize("nonsense", [-1, 1.5, "3", True, None])
def test_a_draft_length_is_an_integer_of_at_least_0(nonsense):
    with pytest.raises(ConfigError, match="gkt_gamma must be an integer of at least 0"):
        check_gamma(nonsense)
