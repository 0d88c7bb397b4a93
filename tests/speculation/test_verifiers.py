"""One block: what is accepted, and what comes after it."""

from __future__ import annotations

import pytest
import torch

from gkt_plugins.contracts import Noise, Proposal
from gkt_plugins.speculation.leniency import CappedRule, exponential, linear, square
from gkt_plugins.speculation.scores import KnownScores
from gkt_plugins.speculation.verifiers import ExactVerifier, LenientVerifier

P = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
Q = torch.tensor([[0.6, 0.2, 0.2], [0.2, 0.2, 0.6]])


def verdict(verifier, ids, u, v, *, q: torch.Tensor | None = Q, p=P, greedy=False, counts=None):
    """(accepted, next token) of one row."""
    proposal = Proposal(torch.tensor([ids]), None if q is None else q[None], counts)
    noise = Noise(torch.tensor([u]), torch.tensor([v]))
    result = verifier.verify(proposal, KnownScores(p[None], greedy=greedy), noise)
    return int(result.accepted), int(result.next_ids)


def test_a_token_passes_when_its_draw_is_below_p_over_q():
    assert verdict(ExactVerifier(), [0, 2], [0.83, 0.99], 0.0)[0] == 2  # 0.5/0.6 = 0.833
    assert verdict(ExactVerifier(), [0, 2], [0.84, 0.0], 0.0)[0] == 0


def test_after_a_rejection_the_next_token_comes_from_what_the_draft_left_out():
    # max(0, p - q) of the first position is (0, 0.1, 0): only token 1 is left.
    for v in (0.0, 0.5, 0.9999):
        assert verdict(ExactVerifier(), [0, 2], [0.84, 0.0], v) == (0, 1)


def test_after_all_are_accepted_the_bonus_token_is_the_target_s_own():
    assert [verdict(ExactVerifier(), [0, 2], [0.0, 0.0], v)[1] for v in (0.05, 0.5, 0.95)] == [0, 1, 2]


def test_a_certain_draft_is_accepted_with_the_target_s_probability_and_never_drawn_again():
    assert verdict(ExactVerifier(), [0, 2], [0.49, 0.59], 0.0, q=None)[0] == 2
    rejected = {verdict(ExactVerifier(), [0, 2], [0.51, 0.0], v, q=None)[1] for v in (0.0, 0.3, 0.7, 0.999)}
    assert rejected == {1, 2}


def test_tokens_beyond_a_row_s_count_are_never_accepted_and_are_followed_by_the_target_s_own():
    one = torch.tensor([1])
    assert verdict(ExactVerifier(), [0, 2], [0.0, 0.0], 0.1, counts=one) == (1, 0)
    assert verdict(ExactVerifier(), [0, 2], [0.0, 0.0], 0.9, counts=one) == (1, 2)
    # even where the draft gave the token of the next position certainty, nothing is taken away from the target
    sure = torch.tensor([[0.6, 0.2, 0.2], [1.0, 0.0, 0.0]])
    assert verdict(ExactVerifier(), [0, 0], [0.0, 0.0], 0.1, q=sure, counts=one) == (1, 0)


def test_greedy_rows_accept_the_most_likely_token_alone():
    assert verdict(ExactVerifier(), [0, 2], [0.9, 0.9], 0.9, greedy=True) == (2, 1)
    assert verdict(ExactVerifier(), [0, 1], [0.0, 0.0], 0.0, greedy=True) == (1, 2)
    assert verdict(ExactVerifier(), [1, 2], [0.0, 0.0], 0.0, greedy=True) == (0, 0)


def test_rows_of_a_block_are_decided_independently():
    proposal = Proposal(torch.tensor([[0, 2], [0, 2], [1, 0]]), Q.expand(3, -1, -1))
    noise = Noise(torch.tensor([[0.0, 0.0], [0.84, 0.0], [0.9, 0.9]]), torch.tensor([0.5, 0.5, 0.5]))
    result = ExactVerifier().verify(proposal, KnownScores(P.expand(3, -1, -1)), noise)
    assert result.accepted.tolist() == [2, 0, 2]
    assert result.next_ids.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "rule", [linear, square, exponential, CappedRule(0.1)], ids=["linear", "square", "exponential", "capped"]
)
@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
def test_leniency_one_is_exact(rule, greedy):
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(500, 4, 6, generator=generator), -1)
    q = torch.softmax(torch.randn(500, 3, 6, generator=generator), -1)
    ids = torch.multinomial(q.flatten(0, 1), 1, generator=generator).view(500, 3)
    noise = Noise(torch.rand(500, 3, generator=generator), torch.rand(500, generator=generator))
    scores = KnownScores(p, greedy=greedy)
    exact = ExactVerifier().verify(Proposal(ids, q), scores, noise)
    lenient = LenientVerifier(rule, 1.0).verify(Proposal(ids, q), scores, noise)
    assert torch.equal(exact.accepted, lenient.accepted)
    assert torch.equal(exact.next_ids, lenient.next_ids)


def test_leniency_raises_the_chance_to_pass_by_the_rule():
    # Token 0 of the first position: p = 0.5, q = 0.6; exponential at 0.5 gives 0.707, above q, so it always passes.
    assert verdict(LenientVerifier(exponential, 0.5), [0, 2], [0.999, 0.0], 0.0)[0] == 2
    assert verdict(LenientVerifier(linear, 0.9), [0, 2], [0.92, 0.0], 0.0)[0] == 2  # 0.5 / 0.9 / 0.6 = 0.926
    assert verdict(LenientVerifier(linear, 0.9), [0, 2], [0.93, 0.0], 0.0)[0] == 0


def test_at_temperature_zero_leniency_compares_with_the_most_likely_token():
    # Second position: p = (0.2, 0.2, 0.6), so token 0 has a third of the best.
    assert verdict(LenientVerifier(linear, 0.34), [0, 0], [0.0, 0.0], 0.0, greedy=True)[0] == 1
    assert verdict(LenientVerifier(linear, 0.33), [0, 0], [0.0, 0.0], 0.0, greedy=True)[0] == 2


def test_at_temperature_zero_ties_do_not_make_leniency_one_differ_from_exact():
    p = torch.tensor([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2]])
    assert verdict(LenientVerifier(linear, 1.0), [1], [0.0], 0.0, q=None, p=p, greedy=True) == (0, 0)


def test_leniency_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"leniency must be in \(0, 1\], got 0"):
        LenientVerifier(linear, 0)
