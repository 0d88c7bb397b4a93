"""Drafting from what the row said before."""

from __future__ import annotations

import pytest
import torch

from gkt_plugins.contracts import Sampling
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.prompt_lookup import PromptLookupDrafter
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.testing.models import TableModel


class State:
    """Rows with their tokens, as the loop shows them."""

    def __init__(self, **rows: list[int]) -> None:
        self.rows = list(map(ord, rows))
        self.lengths = [len(tokens) for tokens in rows.values()]
        longest = max(self.lengths) + 2
        self.token_ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in rows.values()])


def proposed(drafter: PromptLookupDrafter, gamma: int, **rows: list[int]) -> list[list[int]]:
    proposal = drafter.propose(State(**rows), gamma)
    return [ids[:n] for ids, n in zip(proposal.ids.tolist(), proposal.counts.tolist(), strict=True)]


def test_what_followed_the_last_words_is_proposed():
    assert proposed(PromptLookupDrafter(), 3, a=[1, 2, 3, 4, 5, 1, 2]) == [[3, 4, 5]]


def test_the_longest_run_wins_over_the_latest():
    assert proposed(PromptLookupDrafter(2), 1, a=[1, 2, 3, 9, 2, 4, 1, 2]) == [[3]]


def test_of_equal_runs_the_latest_wins():
    assert proposed(PromptLookupDrafter(2), 1, a=[1, 2, 3, 1, 2, 4, 1, 2]) == [[4]]


def test_rows_may_find_fewer_tokens_than_asked_or_none():
    assert proposed(PromptLookupDrafter(), 4, a=[1, 2, 1], b=[5, 6, 7], c=[8, 9, 8, 9, 8]) == [[2, 1], [], [9, 8]]


def test_rows_keep_their_index_when_they_change_place():
    drafter = PromptLookupDrafter()
    proposed(drafter, 2, a=[1, 2, 3], b=[4, 5, 4])
    assert proposed(drafter, 2, b=[4, 5, 4, 5], a=[1, 2, 3, 1]) == [[4, 5], [2, 3]]


def test_repeating_text_is_decoded_in_fewer_target_calls():
    target = TableModel.greedy([1, 2, 3, 4, 0])
    (result,) = DecodeLoop(target, drafter=PromptLookupDrafter(), gamma=4).run(
        [DecodeRequest([0], Sampling(max_tokens=40))]
    )
    assert result.token_ids == target.continue_greedily([0], 40)
    assert len(target.calls) < 20


def test_text_that_never_repeats_is_decoded_plainly():
    target = TableModel.greedy([*range(1, 30), 0])
    (result,) = DecodeLoop(target, drafter=PromptLookupDrafter(), gamma=4).run(
        [DecodeRequest([0], Sampling(max_tokens=20))]
    )
    assert result.token_ids == list(range(1, 21))
    assert (result.counts.blocks, result.notes) == (0, ())


def test_a_run_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="max_ngram must be at least 1, got 0"):
        PromptLookupDrafter(0)
