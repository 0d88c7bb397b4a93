"""An engine's own counters give the counts that our loop would have had."""

import random
from types import SimpleNamespace

import pytest

from gkt_plugins.speculation.counts import Counts
from gkt_vllm.counters import count_each_request, counts_of, counts_of_step, drafts_of


class Step:
    """vLLM's ``SpecDecodingStats`` of blocks that are observed, beside what our loop counts of them."""

    def __init__(self, longest: int) -> None:
        self.num_drafts = self.num_draft_tokens = self.num_accepted_tokens = 0
        self.num_accepted_tokens_per_pos = [0] * longest
        self.num_draft_tokens_per_pos = [0] * longest
        self.ours = Counts()

    def observe(self, drafted: int, accepted: int) -> None:
        self.num_drafts += 1
        self.num_draft_tokens += drafted
        self.num_accepted_tokens += accepted
        for position in range(accepted):
            self.num_accepted_tokens_per_pos[position] += 1
        for position in range(drafted):
            self.num_draft_tokens_per_pos[position] += 1
        self.ours.add_block(drafted, accepted, bonus=accepted == drafted)


def test_counts_of_equal_blocks_are_recovered_exactly_from_totals():
    draws, step = random.Random(0), Step(4)
    for _ in range(1000):
        step.observe(4, draws.randint(0, 4))
    totals = step.num_drafts, step.num_draft_tokens, step.num_accepted_tokens, step.num_accepted_tokens_per_pos
    assert counts_of(*totals) == counts_of_step(step) == step.ours


@pytest.mark.parametrize("drafted", range(5))
def test_counts_of_one_block_of_any_length_are_exact(drafted):
    for accepted in range(drafted + 1):
        step = Step(4)
        step.observe(drafted, accepted)
        assert counts_of_step(step) == step.ours


def test_of_blocks_of_different_lengths_tested_is_off_by_one_for_each_shorter_block_at_most():
    draws = random.Random(1)
    off = 0
    for _ in range(200):
        step = Step(4)
        lengths = [draws.randint(0, 4) for _ in range(8)]
        for drafted in lengths:
            step.observe(drafted, draws.randint(0, drafted))
        counts = counts_of_step(step)
        shorter = sum(0 < drafted < 4 for drafted in lengths)
        assert step.ours.tested <= counts.tested <= step.ours.tested + shorter
        assert counts.bonus == counts.accepted + counts.blocks - counts.tested
        assert (counts.drafted, counts.accepted, counts.blocks) == (
            step.ours.drafted,
            step.ours.accepted,
            step.ours.blocks,
        )
        off += counts.tested != step.ours.tested
    assert off  # that lengths differ is felt: the bound is needed


def test_nothing_drafted_is_nothing_counted():
    assert counts_of(0, 0, 0, []) == Counts()
    assert counts_of_step(Step(3)) == Counts()


def test_drafts_of_an_answer_are_those_that_the_engine_counted_for_it():
    counted = SimpleNamespace(histogram=[3, 0, 2, 1], num_draft_tokens=18)
    assert drafts_of(SimpleNamespace(spec_decode_metrics=counted)) == (18, 2 * 2 + 3)


@pytest.mark.parametrize("answer", [SimpleNamespace(), SimpleNamespace(spec_decode_metrics=None)])
def test_where_an_engine_does_not_count_by_request_there_are_none(answer):
    assert drafts_of(answer) == (0, 0)


@pytest.mark.parametrize(("level", "then"), [("none", "summary"), ("summary", "summary"), ("detailed", "detailed")])
def test_requests_are_counted_and_what_the_operator_asked_for_stays(level, then):
    vllm_config = SimpleNamespace(observability_config=SimpleNamespace(per_request_spec_decode_metrics=level))
    assert count_each_request(vllm_config)
    assert vllm_config.observability_config.per_request_spec_decode_metrics == then


def test_a_vllm_that_cannot_count_by_request_is_told_apart_and_left_alone():
    vllm_config = SimpleNamespace(observability_config=SimpleNamespace())
    assert not count_each_request(vllm_config)
    assert not vars(vllm_config.observability_config)
