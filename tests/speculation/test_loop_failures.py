"""What fails loses nothing else: a row its own answer, a drafter or a verifier its place."""

from __future__ import annotations

import pytest

from gkt_plugins.contracts import Sampling
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.testing.models import TableModel

# 0 → 1 → … → 9 → 0; the drafter knows all steps but the one from 4.
CYCLE = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
MISTAKEN = [1, 2, 3, 4, 9, 6, 7, 8, 9, 0]


def cycle(**kwargs) -> TableModel:
    return TableModel.greedy(CYCLE, **kwargs)


def loop_of(target=None, drafter=None, gamma=3, **kwargs) -> DecodeLoop:
    return DecodeLoop(target or cycle(), drafter=drafter or TableModel.greedy(CYCLE), gamma=gamma, **kwargs)


def ask(prompt=(0,), *, max_tokens=8, **kwargs) -> DecodeRequest:
    options = {key: kwargs.pop(key) for key in list(kwargs) if key in Sampling.__dataclass_fields__}
    return DecodeRequest(list(prompt), Sampling(max_tokens=max_tokens, **options), **kwargs)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (ask([]), "at least one token, got an empty one"),
        (ask([0] * 20), "shorter than the model's context of 20 tokens, got 20"),
        (ask([3, 10]), "expected token ids from 0 to 9, got 3 to 10"),
        (ask([-1]), "expected token ids from 0 to 9, got -1 to -1"),
        (ask(max_tokens=0), "max_tokens of at least 1, got 0"),
        (ask(temperature=-1.0), "temperature of at least 0, got -1.0"),
        (ask(repetition_penalty=0.0), "repetition penalty above 0, got 0.0"),
        (ask(stop=("x",)), "stop strings need a tokenizer"),
        (ask(stop=("x", "")), "stop strings of at least one character, got an empty one"),
    ],
)
def test_a_bad_request_gets_one_clear_sentence_and_the_good_ones_their_answers(bad, message):
    results = loop_of(cycle(context=20), max_batch=2).run([ask(), bad, ask([4])])
    assert message in str(results[1].error)
    assert results[1].finish_reason is None
    assert [result.token_ids for result in results[::2]] == [cycle().continue_greedily([start], 8) for start in (0, 4)]


class Failing(TableModel):
    """Drafts for two blocks, then raises."""

    blocks = 0

    def propose(self, state, gamma):
        self.blocks += 1
        if self.blocks > 2:
            raise RuntimeError("out of ideas")
        return super().propose(state, gamma)


def test_a_failing_drafter_degrades_to_plain_decoding_with_a_note():
    loop = loop_of(drafter=Failing.greedy(CYCLE), max_batch=2)
    results = loop.run([ask(max_tokens=20), ask([5], max_tokens=20), ask([2], max_tokens=3)])
    assert [result.token_ids for result in results] == [
        cycle().continue_greedily([start], n) for start, n in ((0, 20), (5, 20), (2, 3))
    ]
    assert all("degraded: the drafter failed" in result.notes[0] and result.error is None for result in results)
    assert loop.drafter is None


class Nonsense(TableModel):
    """Proposes ids that no embedding has."""

    def propose(self, state, gamma):
        proposal = super().propose(state, gamma)
        proposal.ids = proposal.ids + 1000
        return proposal


def test_a_drafter_that_proposes_impossible_tokens_is_left_out():
    (result,) = loop_of(drafter=Nonsense.greedy(CYCLE)).run([ask(max_tokens=20)])
    assert result.token_ids == cycle().continue_greedily([0], 20)
    assert "degraded: the drafter failed" in result.notes[0]


class Raising:
    """A verifier."""

    def verify(self, proposal, target, noise):
        raise RuntimeError("no verdict")


def test_a_failing_verifier_is_replaced_by_the_exact_one_with_a_note():
    (result,) = loop_of(verifier=Raising()).run([ask(max_tokens=20)])
    assert result.token_ids == cycle().continue_greedily([0], 20)
    assert result.notes == ("degraded: the verifier failed, decoding goes on exactly: RuntimeError('no verdict')",)


class BreaksLater(TableModel):
    """A target that fails after a few calls."""

    def forward(self, ids, starts, **kwargs):
        if len(self.calls) == 2:
            raise MemoryError("no room")
        return super().forward(ids, starts, **kwargs)


def test_a_failing_target_loses_nothing_that_was_computed():
    loop = DecodeLoop(BreaksLater.greedy(CYCLE), max_batch=2)
    results = loop.run([ask(max_tokens=20), ask([5], max_tokens=20)])
    assert [result.token_ids for result in results] == [[1, 2], [6, 7]]
    assert all("the target model failed: MemoryError" in str(result.error) for result in results)


def test_a_failing_logits_processor_fails_its_own_row_alone():
    def broken(ids, scores):
        if ids.shape[1] == 4:
            raise RuntimeError("no")
        return scores

    def at_once(ids, scores):
        raise RuntimeError("no")

    requests = [ask(), ask(processors=[broken]), ask([4]), ask(processors=[at_once])]
    results = loop_of(max_batch=4, gamma=2).run(requests)
    assert [result.token_ids for result in results[::2]] == [cycle().continue_greedily([start], 8) for start in (0, 4)]
    assert "logits processor function failed" in str(results[1].error)
    assert results[1].token_ids == [1]  # the block in which it failed is not half kept
    assert "logits processor function failed" in str(results[3].error)


def test_a_failing_callback_fails_its_own_row_alone():
    loop = loop_of()

    def broken(tokens):
        raise RuntimeError("client went away")

    failed, fine = [], []
    loop.add(ask(), on_tokens=broken, on_finish=failed.append)
    loop.add(ask(), on_finish=fine.append)
    while loop.busy:
        loop.step()
    assert "client went away" in str(failed[0].error)
    assert fine[0].token_ids == cycle().continue_greedily([0], 8)


def test_a_loop_goes_on_after_failed_rows():
    loop = loop_of(cycle(context=20), max_batch=2)
    loop.run([ask([]), ask([0] * 30)])
    assert loop.run([ask()])[0].token_ids == cycle().continue_greedily([0], 8)


def test_a_batch_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="max_batch must be at least 1, got 0"):
        DecodeLoop(cycle(), max_batch=0)


def test_a_gamma_of_zero_is_refused():
    with pytest.raises(ValueError, match="gamma must be at least 1, got 0"):
        loop_of(gamma=0)
