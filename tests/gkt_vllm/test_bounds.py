"""What a request may ask of a server's drafts."""

from __future__ import annotations

import pytest

from gkt_plugins.errors import ConfigError
from gkt_vllm.bounds import Bounds, wishes
from gkt_vllm.section import DrafterSettings, LeniencySettings, WorkerSettings

LENIENT = WorkerSettings(leniency=LeniencySettings(rule="linear", epsilon=0.8, least=0.5))
OWN = LENIENT.model_copy(
    update={"drafter": DrafterSettings(drafter="model", drafter_options={}, base_dir=".", auto=False)}
)


@pytest.mark.parametrize(("asked", "epsilon"), [({}, 0.8), ({"gkt_epsilon": 0.5}, 0.5), ({"gkt_epsilon": 1}, 1.0)])
def test_a_request_gets_what_it_asks_for_within_the_bound_or_else_the_operator_s(asked, epsilon):
    assert Bounds.of(LENIENT).check(asked) == epsilon


@pytest.mark.parametrize("workers", [None, WorkerSettings()])
def test_where_nothing_is_lenient_nothing_can_be_asked_for_but_exactness(workers):
    bounds = Bounds.of(workers)
    assert bounds.check({}) == bounds.check({"gkt_epsilon": 1}) == 1.0
    with pytest.raises(ConfigError, match="allows no leniency here"):
        bounds.check({"gkt_epsilon": 0.9})


def test_leniency_beyond_the_bound_is_refused_with_the_bound():
    with pytest.raises(ConfigError, match=r"gkt_epsilon is 0\.4, and the operator allows 0.5 at least here"):
        Bounds.of(LENIENT).check({"gkt_epsilon": 0.4})


def test_a_draft_length_is_for_our_own_drafter_and_without_drafts_nothing_is_lenient():
    with pytest.raises(ConfigError, match=r"vllm\.drafts_by = 'gkt'"):
        Bounds.of(LENIENT).check({"gkt_gamma": 2})
    assert Bounds.of(OWN).check({"gkt_gamma": 2}) == 0.8
    assert Bounds.of(OWN).check({"gkt_gamma": 0}) == 1.0
    with pytest.raises(ConfigError, match="gkt_gamma must be an integer of at least 0"):
        Bounds.of(OWN).check({"gkt_gamma": -1})


def test_a_wish_of_ours_that_is_misspelt_is_refused_and_one_of_others_is_none_of_ours():
    with pytest.raises(ConfigError, match=r"gkt_gama is nothing .* did you mean 'gkt_gamma'\?"):
        Bounds.of(OWN).check({"gkt_gama": 2})
    assert Bounds.of(OWN).check({"other": 2}) == 0.8


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"vllm_xargs": {"gkt_gamma": 1}}, {"gkt_gamma": 1}),
        ({"token_ids": [1], "sampling_params": {"extra_args": {"gkt_gamma": 2}}}, {"gkt_gamma": 2}),
        ({"vllm_xargs": "text"}, {}),
        ({"sampling_params": {}}, {}),
        ({}, {}),
    ],
)
def test_wishes_are_found_where_vllm_finds_them(body, found):
    assert wishes(body) == found
