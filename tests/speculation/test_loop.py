"""Rows come, advance, stop and go, each for itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gkt_plugins.contracts import Sampling, TraceEvent
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.gamma import GammaController
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel
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


class Digits:
    """A tokenizer: every token is its digit."""

    def decode(self, ids, **kwargs) -> str:
        return "".join(map(str, ids))


# -------------------------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize("gamma", [1, 2, 3, 7, "auto"])
def test_greedy_output_is_the_target_s_own_whatever_the_drafter(gamma):
    target = cycle()
    for drafter in (TableModel.greedy(CYCLE), TableModel.greedy(MISTAKEN), TableModel.random(10, seed=0)):
        (result,) = loop_of(target, drafter, gamma).run([ask(max_tokens=24)])
        assert result.token_ids == target.continue_greedily([0], 24)
        assert result.finish_reason == "length"


def test_a_block_that_is_all_accepted_takes_one_target_call():
    target = cycle()
    (result,) = loop_of(target, gamma=3).run([ask(max_tokens=9)])
    assert target.calls == [(1, 1), (1, 4), (1, 4)]  # the prompt gives the first token, each block four more
    assert (result.counts.blocks, result.counts.drafted, result.counts.accepted, result.counts.bonus) == (2, 6, 6, 2)


def test_counts_say_where_the_draft_was_wrong():
    (result,) = loop_of(drafter=TableModel.greedy(MISTAKEN), gamma=3).run([ask([3], max_tokens=5)])
    # after 4 came from the prompt: drafted 9 (wrong, recovered 5) ..., then 6 7 8 and the bonus 9
    assert result.token_ids == [4, 5, 6, 7, 8]
    assert (result.counts.blocks, result.counts.accepted, result.counts.tested) == (2, 2, 3)


def test_results_come_in_the_order_of_the_requests():
    requests = [ask([i % 10], max_tokens=1 + i % 7) for i in range(30)]
    results = loop_of(max_batch=4).run(requests)
    assert [result.request for result in results] == requests
    assert all(r.token_ids == cycle().continue_greedily([i % 10], 1 + i % 7) for i, r in enumerate(results))


def test_a_waiting_prompt_takes_the_place_of_a_finished_row_at_once():
    target = cycle()
    loop_of(target, gamma=1, max_batch=2).run([ask(max_tokens=3), ask(max_tokens=9), ask(max_tokens=7)])
    decoding = [rows for rows, width in target.calls if width == 2]
    assert decoding == [2, 2, 2, 2]  # two rows are always under way; none waits for the longest


def test_no_requests_give_no_results():
    assert loop_of().run([]) == []


# ------------------------------------------------------------------------------------------------------------- the end


def test_an_end_of_sequence_token_inside_an_accepted_block_ends_the_row_there():
    (result,) = loop_of(gamma=7).run([ask(max_tokens=50, eos_ids=(5, 8))])
    assert result.token_ids == [1, 2, 3, 4, 5]
    assert result.finish_reason == "stop"
    assert result.counts.accepted == 4  # what was drafted behind the end is not part of the answer


@pytest.mark.parametrize("max_tokens", range(1, 10))
def test_a_token_budget_that_ends_inside_a_block_is_kept(max_tokens):
    (result,) = loop_of(gamma=5).run([ask(max_tokens=max_tokens)])
    assert result.token_ids == cycle().continue_greedily([0], max_tokens)
    assert result.finish_reason == "length"


def test_a_stop_string_ends_the_row_with_the_token_that_completes_it():
    loop = loop_of(gamma=7, tokenizer=Digits())
    (result,) = loop.run([ask(max_tokens=50, stop=("99", "456"))])
    assert result.token_ids == [1, 2, 3, 4, 5, 6]
    assert (result.finish_reason, result.stop) == ("stop", "456")


def test_a_stop_string_is_looked_for_in_the_answer_alone():
    (result,) = loop_of(tokenizer=Digits()).run([ask([3, 4, 5], max_tokens=12, stop=("345", "56"))])
    assert result.token_ids == [6, 7, 8, 9, 0, 1, 2, 3, 4, 5]


def test_rows_stop_each_for_itself():
    requests = [
        ask(max_tokens=30, stop=("3",)),
        ask(max_tokens=30, eos_ids=(7,)),
        ask(max_tokens=4),
        ask(max_tokens=30, stop=("90",)),
    ]
    results = loop_of(tokenizer=Digits(), max_batch=4).run(requests)
    assert [len(result.token_ids) for result in results] == [3, 7, 4, 10]


def test_a_row_ends_at_the_model_s_context():
    (result,) = loop_of(cycle(context=10), gamma=7).run([ask([0, 1, 2], max_tokens=100)])
    assert result.token_ids == cycle().continue_greedily([2], 7)
    assert result.finish_reason == "length"


def test_a_stopping_criterion_is_asked_after_every_token_with_the_row_s_own_ids():
    seen = []

    def criterion(ids, scores):
        seen.append(ids[0].tolist())
        return torch.tensor([ids.shape[1] == 5])

    other = ask([7], max_tokens=3)
    results = loop_of(gamma=4, max_batch=2).run([ask([0], max_tokens=50, criteria=[criterion]), other])
    assert results[0].token_ids == [1, 2, 3, 4]
    assert seen == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


# ------------------------------------------------------------------------------------- nothing depends on the company


SAMPLED = [
    Sampling(max_tokens=12, temperature=1.0, seed=1),
    Sampling(max_tokens=15, temperature=0.7, top_k=20, seed=2),
    Sampling(max_tokens=9, temperature=1.2, top_p=0.9, seed=3),
    Sampling(max_tokens=11),
    Sampling(max_tokens=14, temperature=0.9, repetition_penalty=1.2, seed=4),
    Sampling(max_tokens=6, temperature=1.0, min_p=0.05, seed=5),
]


def test_a_row_s_output_does_not_depend_on_what_else_is_in_the_batch(tiny, perturbed, prompts):
    target = TransformersModel(tiny("llama"))
    requests = [DecodeRequest(prompts[i], SAMPLED[i % len(SAMPLED)]) for i in range(18)]

    def answers(order, max_batch):
        drafter = ModelDrafter(TransformersModel(perturbed("llama")), target.vocab_size)
        loop = DecodeLoop(target, drafter=drafter, gamma=3, max_batch=max_batch)
        results = loop.run([requests[i] for i in order])
        return {i: result.token_ids for i, result in zip(order, results, strict=True)}

    alone = answers(range(18), 1)
    assert answers(range(18), 5) == alone
    assert answers(list(reversed(range(18))), 8) == alone


def test_a_seed_repeats_an_answer_and_another_seed_gives_another():
    target = TableModel.random(50, seed=0)

    def answer(seed):
        drafter = TableModel.random(50, seed=1)
        return (
            DecodeLoop(target, drafter=drafter, gamma=3)
            .run([ask(max_tokens=20, temperature=1.0, seed=seed)])[0]
            .token_ids
        )

    assert answer(11) == answer(11)
    assert answer(11) != answer(12)
    assert answer(None) != answer(None)  # no seed: a fresh one


# ------------------------------------------------------------------------------------------------- streams and callers


def test_tokens_are_handed_over_as_they_come_and_results_as_soon_as_rows_finish():
    order: list[tuple[str, int]] = []
    streamed: dict[int, list[int]] = {0: [], 1: []}

    def on_tokens(place, tokens):
        streamed[place] += tokens
        order.append(("tokens", place))

    results = loop_of(max_batch=2).run(
        [ask(max_tokens=20), ask(max_tokens=4)],
        on_tokens=on_tokens,
        on_finish=lambda place, result: order.append(("end", place)),
    )
    assert [streamed[place] for place in (0, 1)] == [result.token_ids for result in results]
    assert order.index(("end", 1)) < len(order) - 1 - order[::-1].index(("tokens", 0))


def test_requests_may_be_added_between_steps():
    loop = loop_of(max_batch=2)
    loop.add(ask(max_tokens=12))
    assert loop.step() == []
    loop.add(ask([5], max_tokens=2))
    finished = []
    while loop.busy:
        finished += loop.step()
    assert [result.token_ids for result in finished] == [[6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]]


def test_a_cancelled_row_keeps_its_tokens_and_the_others_go_on():
    loop = loop_of(max_batch=2, gamma=1)
    first, second, waiting = (loop.add(ask(max_tokens=40)) for _ in range(3))
    loop.step()
    loop.cancel(first)
    loop.cancel(waiting)
    loop.cancel(99)  # not known: nothing happens
    cancelled = loop.step()
    assert {result.finish_reason for result in cancelled} == {"cancelled"}
    assert sorted(len(result.token_ids) for result in cancelled) == [0, 3]
    finished = []
    while loop.busy:
        finished += loop.step()
    assert [len(result.token_ids) for result in finished] == [40]
    assert second != first


def test_shares_of_time_add_up_to_the_loop_s_own():
    loop = loop_of(max_batch=3)
    results = loop.run([ask(max_tokens=5 + i) for i in range(7)])
    assert sum(result.seconds for result in results) == pytest.approx(loop.timings.total)


def test_every_verified_block_of_every_row_can_be_observed():
    events: list[TraceEvent] = []
    loop = loop_of(drafter=TableModel.greedy(MISTAKEN), gamma=3, on_block=events.append)
    loop.run([ask([3], max_tokens=5, request_id="r")])
    assert events == [
        TraceEvent("r", (3, 4), (9, 0, 1), 0, kept=(5,), prompt_tokens=1, row=0),
        TraceEvent("r", (3, 4, 5), (6, 7), 2, kept=(6, 7, 8), prompt_tokens=1, row=0, finished=True),
    ]


def test_the_last_step_of_a_row_can_be_observed_also_without_speculation():
    events: list[TraceEvent] = []
    DecodeLoop(cycle(), on_block=events.append).run([ask([3], max_tokens=4)])
    assert events == [TraceEvent("", (3, 4, 5, 6), (), 0, kept=(7,), prompt_tokens=1, row=0, finished=True)]


def test_processors_change_the_output_alike_with_and_without_speculation():
    def no_five(ids, scores):
        scores = scores.clone()
        scores[:, 5] = -torch.inf
        scores[:, 0] = scores[:, 0].clamp(min=-5)
        return scores

    request = ask(max_tokens=20, processors=[no_five])
    (plain,) = DecodeLoop(cycle()).run([request])
    (speculated,) = loop_of(gamma=3).run([dataclasses.replace(request)])
    assert 5 not in plain.token_ids
    assert speculated.token_ids == plain.token_ids


def test_a_controller_is_shared_between_loops():
    controller = GammaController()
    for _ in range(2):
        loop_of(gamma=controller).run([ask(max_tokens=30)])
    assert controller.choose(1) in (0, *controller.options)
