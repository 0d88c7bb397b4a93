"""One moved logit makes an exact sampler lenient: acceptance, residual, temperature 0, and nothing left behind."""

import pytest
import torch

from gkt_plugins.speculation.leniency import CappedRule, exponential, linear, square
from gkt_vllm.one_logit import lift


def leniently(logits, ids, epsilon, greedy, rule):
    return lift(logits, ids, torch.tensor(epsilon, dtype=torch.float64), set(epsilon), greedy, rule)


RULES = {"linear": linear, "square": square, "exponential": exponential, "capped": CappedRule(0.1)}


def logits_of(rows: int, vocab: int = 50, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2).to(dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("epsilon", [0.9, 0.5, 0.1])
def test_the_drafted_token_gets_the_probability_that_the_rule_gives_it(rule, epsilon):
    logits, ids = logits_of(40), torch.arange(40)
    p = logits.double().softmax(-1)[torch.arange(40), ids]
    leniently(logits, ids, [epsilon] * 40, None, RULES[rule])
    wanted = torch.as_tensor(RULES[rule](p, epsilon)).clamp(max=1.0 - 2.0**-20)
    got = logits.double().softmax(-1)[torch.arange(40), ids]
    # float32 logits near a probability of 1 resolve it to about 2^-20
    assert torch.allclose(got, wanted, rtol=2e-4, atol=1e-6)


def test_every_other_token_keeps_its_share_so_that_the_residual_is_the_targets_own():
    logits, ids = logits_of(8), torch.arange(8)
    before = logits.double().softmax(-1)
    leniently(logits, ids, [0.3] * 8, None, exponential)
    after = logits.double().softmax(-1)
    for row, token in enumerate(ids.tolist()):
        rest = [i for i in range(50) if i != token]
        assert torch.allclose(after[row, rest] / after[row, rest].sum(), before[row, rest] / before[row, rest].sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("greedy", [True, False])
def test_restoring_leaves_every_bit_as_it_was(dtype, greedy):
    logits = logits_of(70, dtype=dtype)
    before = logits.clone()
    lifted = leniently(logits, torch.arange(50).repeat(2)[:70], [0.2] * 70, torch.tensor([greedy] * 70), linear)
    assert not torch.equal(logits, before)
    lifted.restore()
    assert torch.equal(logits, before)


def test_tokens_that_are_not_to_be_touched_are_not():
    logits = logits_of(5)
    logits[1, 7] = -torch.inf  # forbidden by a grammar
    before = logits.clone()
    leniently(logits, torch.tensor([-1, 7, 3, 4, 5]), [0.1, 0.1, 1.0, 0.1, 0.1], None, square)
    changed = (logits != before).any(-1).tolist()
    assert changed == [False, False, False, True, True]


def test_rows_ask_for_leniency_of_their_own():
    logits, ids = logits_of(6), torch.arange(6)
    p = logits.double().softmax(-1)[ids, ids]
    epsilon = [0.5, 1.0, 0.25, 0.5, 1.0, 0.8]
    leniently(logits, ids, epsilon, None, linear)
    wanted = (p / torch.tensor(epsilon)).clamp(max=1.0 - 2.0**-20)
    assert torch.allclose(logits.double().softmax(-1)[ids, ids], wanted, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("epsilon", [0.9, 0.5, 0.1, 0.01])
def test_at_temperature_0_exactly_the_tokens_within_epsilon_of_the_best_become_the_argmax(epsilon, dtype):
    logits = logits_of(50, seed=3, dtype=dtype)
    ids = torch.arange(50)
    within = logits.float()[ids, ids] - logits.float().amax(-1) >= torch.tensor(epsilon).log()
    own = logits.argmax(-1)
    leniently(logits, ids, [epsilon] * 50, torch.ones(50, dtype=torch.bool), exponential)
    assert torch.equal(logits.argmax(-1), torch.where(within, ids, own))


def test_a_token_that_is_certain_stays_certain():
    logits = torch.full((1, 4), -200.0)
    logits[0, 2] = 200.0
    before = logits.clone()
    leniently(logits, torch.tensor([2]), [0.1], None, linear)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("rule", RULES)
def test_a_token_that_is_next_to_impossible_stays_so_and_no_logit_becomes_nan(rule):
    logits = torch.tensor([[200.0, 0.0, 199.0], [95.0, 0.0, -torch.inf]])  # as low temperatures make them
    before = logits.clone()
    leniently(logits, torch.tensor([1, 1]), [0.5, 0.1], None, RULES[rule])
    assert not logits.isnan().any()
    assert (logits.softmax(-1)[:, 1] < 1e-4).all()
    assert torch.equal(logits[:, [0, 2]], before[:, [0, 2]])


def test_acceptance_follows_the_rule_for_drawn_and_for_certain_drafts():
    generator = torch.Generator().manual_seed(1)
    draws, vocab, epsilon = 200_000, 12, 0.5
    target, draft = logits_of(1, vocab, 5)[0].double(), logits_of(1, vocab, 6)[0].double()
    p, q = target.softmax(-1), draft.softmax(-1)
    ids = torch.multinomial(q, draws, replacement=True, generator=generator)
    lifted = torch.empty(vocab, dtype=torch.float64)
    for token in range(vocab):
        row = target.clone().float()[None]
        leniently(row, torch.tensor([token]), [epsilon], None, linear)
        lifted[token] = row[0].double().softmax(-1)[token]
    uniform = torch.rand(draws, generator=generator, dtype=torch.float64)
    accepted = (uniform * q[ids] < lifted[ids]).double().mean()
    theory = torch.minimum(q, linear(p, epsilon)).sum()
    # standard error of a share of 200,000 draws is at most 0.5 / sqrt(200,000) = 0.0011; four of them
    assert accepted == pytest.approx(theory.item(), abs=0.0045)
