"""Acceptance is counted once, as integers, and rates are derived."""

from __future__ import annotations

from gkt_plugins.speculation.counts import Counts


def blocks(*pairs: tuple[int, int]) -> Counts:
    counts = Counts()
    for drafted, accepted in pairs:
        counts.add_block(drafted, accepted, bonus=accepted == drafted)
    return counts


def test_tested_tokens_end_with_the_first_rejection():
    assert blocks((5, 0)).tested == 1
    assert blocks((5, 3)).tested == 4
    assert blocks((5, 5)).tested == 5


def test_rates_are_derived_from_the_integers():
    counts = blocks((5, 2), (5, 5))
    assert (counts.drafted, counts.tested, counts.accepted, counts.bonus, counts.blocks) == (10, 8, 7, 1, 2)
    assert counts.acceptance_rate == 7 / 8
    assert counts.draft_acceptance_rate == 7 / 10
    assert counts.block_efficiency == 9 / 2


def test_a_plain_step_counts_nothing():
    assert blocks((0, 0)) == Counts()


def test_what_was_not_measured_has_no_rate():
    counts = Counts()
    assert counts.acceptance_rate is None
    assert counts.draft_acceptance_rate is None
    assert counts.block_efficiency is None


def test_counts_of_rows_add_up():
    assert blocks((5, 2)) + blocks((3, 3), (1, 0)) == blocks((5, 2), (3, 3), (1, 0))
