"""Our drafter in vLLM's first model runner: who is drafted for, how much, and what the drafter is told afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from gkt_vllm.drafting import Drafting
from gkt_vllm.section import DrafterSettings


def test_requests_that_gained_a_token_are_drafted_for_and_those_still_read_are_not(runner):
    runner.add("a", [10, 11])
    runner.add("b", [20, 21])
    assert runner.step({"a": [12]}) == {"a": [13, 14, 15, 16], "b": []}
    assert runner.step({"a": [13, 14, 40], "b": [22]}) == {"a": [41, 42, 43, 44], "b": [23, 24, 25, 26]}


def test_each_request_gets_as_many_drafts_as_it_asked_for_beside_the_others(runner, drafter):
    runner.add("none", [10], extra_args={"gkt_gamma": 0})
    runner.add("two", [20], extra_args={"gkt_gamma": 2})
    runner.add("all", [30])
    drafts = runner.step({"none": [11], "two": [21], "all": [31]})
    assert drafts == {"none": [], "two": [22, 23], "all": [32, 33, 34, 35]}
    [(_, lengths, gamma)] = drafter.asked
    assert (lengths, gamma) == ([2, 2], 4)


def test_where_nobody_wants_drafts_the_drafter_is_not_asked(runner, drafter):
    for name in "ab":
        runner.add(name, [10], extra_args={"gkt_gamma": 0})
    assert runner.step({"a": [11], "b": [12]}) == {"a": [], "b": []}
    assert drafter.asked == []


def test_in_a_batch_that_vllm_says_is_too_large_nobody_is_drafted_for(runner, drafter):
    runner.add("a", [10])
    assert runner.step({"a": [11]}, most=0) == {"a": []}
    assert runner.step({"a": [12]}, most=2) == {"a": [13, 14]}
    assert len(drafter.asked) == 1


@pytest.mark.parametrize(
    ("params", "new"),
    [
        ({}, [11, 2]),
        ({"stop_token_ids": [50]}, [50]),
        ({"max_tokens": 3}, [11, 12, 13]),
        ({"max_tokens": None}, list(range(3, 57))),  # to the model's length
    ],
    ids=["end token", "stop token", "max_tokens", "the model's length"],
)
def test_an_answer_that_has_just_ended_is_not_drafted_for(runner, drafter, params, new):
    runner.add("a", [10] * 10, **params)
    assert runner.step({"a": new}) == {"a": []}
    assert drafter.asked == []


def test_an_end_token_is_one_like_others_where_vllm_is_told_to_ignore_it(runner):
    runner.add("a", [10], eos_token_id=None)
    assert runner.step({"a": [2]}) == {"a": [3, 4, 5, 6]}


def test_no_draft_reaches_beyond_the_models_length(runner):
    runner.add("a", [10] * 60, max_tokens=None)
    assert runner.step({"a": [11]}) == {"a": [12, 13]}


def test_the_drafter_is_told_how_much_of_each_draft_was_kept(runner, drafter):
    runner.add("a", [10])
    runner.add("b", [20])
    runner.step({"a": [11], "b": [21]})
    runner.step({"a": [12, 13, 40], "b": [22, 23, 24, 25, 26]})
    assert drafter.kept == [[2, 4]]


def test_what_vllm_did_not_verify_was_not_kept_even_where_the_target_says_the_same(runner, drafter):
    runner.add("a", [10])
    runner.step({"a": [11]})
    runner.step({"a": [12, 13]}, verified={"a": 1})
    assert drafter.kept == [[1]]


def test_after_a_step_that_vllm_drafted_nothing_for_nothing_is_taken_for_kept(runner, drafter):
    runner.add("a", [10])
    runner.step({"a": [11]})
    runner.step({"a": [12]}, drafting=False)
    assert runner.step({"a": [13]}) == {"a": [14, 15, 16, 17]}
    assert drafter.kept == [[0]]


def test_a_name_that_is_used_again_is_another_row_to_the_drafter(runner, drafter):
    runner.add("a", [10])
    runner.step({"a": [11]})
    runner.step({}, finished=["a"])
    runner.add("a", [70, 71])
    runner.step({"a": [72]})
    (first, _, _), (second, _, _) = drafter.asked
    assert first != second


def test_requests_keep_their_places_in_the_drafter_while_vllm_moves_its_rows(runner, drafter):
    for name, token in zip("abc", (10, 20, 30), strict=True):
        runner.add(name, [token])
    runner.step({"a": [11], "b": [21], "c": [31]})
    runner.input_batch.req_ids = ["c", "b", "a"]
    assert runner.step({"a": [40], "b": [50], "c": [60]})["c"] == [61, 62, 63, 64]
    (before, _, _), (after, _, _) = drafter.asked
    assert before == after


def test_nothing_is_kept_of_requests_that_have_left_finished_or_aborted(open_runner):
    runner = open_runner(trace={"path": "traffic.jsonl"})
    left = []
    for n in range(40):
        name = f"r{n}"
        runner.add(name, [10], max_tokens=3)
        left.append(weakref.ref(runner.requests[name]))
        runner.step({name: [11]})
        runner.step({name: [12, 13]} if n % 2 else {name: [12]})  # every second one is aborted
        runner.step({}, finished=[name])
    runner.add("last", [10])
    runner.step({"last": [11]})
    gc.collect()
    assert [ref for ref in left if ref() is not None] == []


class Watching:
    """A policy that always wants one length, and keeps what it is told."""

    def __init__(self) -> None:
        self.seen = []

    def choose(self, batch):
        return 3

    def observe(self, batch, gamma, seconds, drafted, accepted, *, steady):
        self.seen.append((gamma, list(drafted), list(accepted), steady))


@pytest.fixture
def watched(third_party, tmp_path):
    """A policy, and a function that drafts one step for requests of the given lengths."""
    settings = DrafterSettings(drafter="counting", drafter_options={}, base_dir=str(tmp_path), auto=True)
    policy = Watching()
    cpu = torch.device("cpu")
    drafting = Drafting(settings, vocab_size=100, most=4, longest=64, device=cpu, policy=policy)
    drafting.load()

    def step(lengths, params, **kwargs):
        def tokens_of(names, own):
            return torch.ones(len(names), max(own), dtype=torch.int64)

        return drafting.propose(lengths, list(lengths), lambda name: params, tokens_of, **kwargs)

    return policy, step


def test_acceptance_counts_only_what_was_verified_of_requests_that_are_still_there(watched, sampling_params):
    policy, step = watched
    step({"a": 5, "b": 5, "gone": 5}, sampling_params())
    step({"a": 7, "b": 8}, sampling_params(), verified={"a": 3, "b": 2})
    assert policy.seen == [(3, [3, 2, 0], [1, 2, 0], False)]


def test_a_step_that_nobody_lived_through_is_no_measurement(watched, sampling_params):
    policy, step = watched
    step({"a": 5}, sampling_params())
    step({"b": 5}, sampling_params())  # any time may lie between
    assert policy.seen == []


def test_a_block_is_a_measurement_of_cost_where_all_its_requests_were_there_before_and_after(watched, sampling_params):
    policy, step = watched
    step({"a": 5}, sampling_params())
    step({"a": 6}, sampling_params())
    step({"a": 7}, sampling_params())
    assert [steady for *_, steady in policy.seen] == [False, True]
