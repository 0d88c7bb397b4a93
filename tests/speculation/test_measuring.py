"""Measuring with the real decode loop: tiny models, and tables whose probabilities are known."""

from __future__ import annotations

import time

import pytest
import torch

from gkt_plugins.contracts import Sampling
from gkt_plugins.errors import BackendError, ConfigError
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.measuring import measure
from gkt_plugins.speculation.planner import make_plan
from gkt_plugins.speculation.replay import Replay, active_rows, decode_seconds, fill
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel
from gkt_plugins.testing.models import TableModel

END = 39
CHAIN = TableModel.greedy([min(token + 1, END) for token in range(END + 1)])  # counts up to its end
PROMPTS = [[*range(12)], [*range(3, 15)], [*range(8, 20)], [*range(14, 26)], [*range(5, 17)], [*range(1, 13)]]
"""Of twelve tokens each; their answers have 28 to 14."""


def often_right() -> TableModel:
    """Drafts what ``CHAIN`` says, except after every fourth token or so."""
    return TableModel.greedy([0 if token % 7 in (2, 3) else min(token + 1, END) for token in range(END + 1)])


def measured(target, drafter, prompts, **options):
    settings = {"batches": [4], "gamma_max": 3, "max_new_tokens": 32, "eos_ids": (END,), "budget_s": 60.0}
    return measure(target, drafter, prompts, **{**settings, **options})


def replays(measurement):
    filled = fill(measurement.traces)
    return [
        Replay(trace.prompt_tokens, passed, limit=measurement.max_new_tokens)
        for trace, passed in zip(measurement.traces, filled, strict=True)
    ]


@pytest.mark.parametrize("gamma", [1, 2, 4])
def test_blocks_of_other_gammas_are_those_that_the_loop_decodes(gamma):
    answers = replays(measured(CHAIN, often_right(), PROMPTS, gamma_max=12))
    loop = DecodeLoop(CHAIN, drafter=often_right(), gamma=gamma)
    results = loop.run([DecodeRequest(prompt, Sampling(max_tokens=32), eos_ids=(END,)) for prompt in PROMPTS])
    by_length = {len(result.token_ids): result.counts.blocks for result in results}
    assert {answer.tokens: answer.blocks(gamma) for answer in answers} == by_length


class PerToken:
    """Costs in units: what a call with so many rows and tokens per row is said to take."""

    def block(self, batch: int, gamma: int, *, behind: bool) -> float:
        return self.call(batch, gamma + 1)

    def prefill(self, tokens: int) -> float:
        return tokens * 0.1

    def draft_prefill(self, tokens: int) -> float:
        return 0.0

    def call(self, rows: int, width: int) -> float:
        return rows * width * 0.1 if width == len(PROMPTS[0]) else 5.0 + rows**0.5 + width


@pytest.mark.parametrize("gamma", [0, 1, 3, 6])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_simulated_queue_takes_the_steps_that_the_loop_takes(gamma, batch):
    target = TableModel(CHAIN.probs)
    loop = DecodeLoop(target, drafter=often_right() if gamma else None, gamma=gamma or 1, max_batch=batch)
    results = loop.run([DecodeRequest(prompt, Sampling(max_tokens=20), eos_ids=(END,)) for prompt in PROMPTS])
    costs = PerToken()
    wall = sum(costs.call(rows, width) for rows, width in target.calls)
    drafter = often_right()
    rows = [  # whether drafting passes at each token of the answer, from the tables themselves
        Replay(12, [drafter.continue_greedily([before], 1) == [now] for before, now in
                    zip([prompt[-1], *result.token_ids], result.token_ids, strict=False)], limit=20)
        for prompt, result in zip(PROMPTS, results, strict=True)
    ]  # fmt: skip
    assert sum(decode_seconds(rows, batch=batch, gamma=gamma, costs=costs)) == pytest.approx(wall)


def test_the_batch_of_rows_that_began_together_shrinks_as_the_loop_s_does():
    target = TableModel(CHAIN.probs)
    loop = DecodeLoop(target, drafter=often_right(), gamma=3, max_batch=8)
    results = loop.run([DecodeRequest(prompt, Sampling(max_tokens=64), eos_ids=(END,)) for prompt in PROMPTS])
    assert active_rows([result.counts.blocks for result in results]) == [rows for rows, width in target.calls[1:]]


def test_acceptance_is_that_of_the_draft_on_the_target_s_own_answers(tiny, perturbed, prompts):
    target, draft = tiny("llama"), perturbed("llama")
    found = measured(
        TransformersModel(target), ModelDrafter(TransformersModel(draft), 64), prompts[:6],
        gamma_max=4, max_new_tokens=24, eos_ids=(),
    )  # fmt: skip
    rows = {trace.prompt_tokens: trace for trace in found.traces}
    assert len(found.traces) == 6
    compared = 0
    for prompt in prompts[:6]:
        if [len(p) for p in prompts[:6]].count(len(prompt)) > 1:
            continue
        with torch.inference_mode():
            ids = target.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
            agrees = (draft(ids).logits[0, len(prompt) - 1 : -1].argmax(-1) == ids[0, len(prompt) :]).tolist()
        for known, seen in zip(agrees, rows[len(prompt)].passed, strict=True):
            compared += seen is not None
            assert seen is None or seen == known
    assert compared > 24


def test_a_draft_that_is_the_target_passes_everywhere_also_when_tokens_are_drawn(tiny, prompts):
    found = measured(
        TransformersModel(tiny("llama")), ModelDrafter(TransformersModel(tiny("llama")), 64), prompts[:4],
        temperature=1.0, max_new_tokens=12, eos_ids=(),
    )  # fmt: skip
    seen = [now for trace in found.traces for now in trace.passed if now is not None]
    assert len(seen) > 12
    assert all(seen)


def test_every_batch_size_that_a_queue_passes_through_is_timed_with_every_gamma():
    found = measured(CHAIN, often_right(), PROMPTS, batches=[1, 6], gamma_max=3)
    cells = {(step.batch, step.gamma) for step in found.steps}
    assert cells >= {(batch, gamma) for batch in (1, 2, 4, 6) for gamma in range(4)}
    assert max(step.round for step in found.steps) >= 3
    assert all(step.target_s > 0 and step.rest_s > 0 for step in found.steps)
    assert all((step.draft_s > 0) == (step.gamma > 0) for step in found.steps)
    assert {entry.tokens > 0 for entry in found.prefills} == {True}


def test_what_was_measured_can_be_planned_with():
    plan = make_plan(measured(CHAIN, often_right(), PROMPTS), batches=[1, 4], gamma_max=3)
    assert len(plan.cells) == 6
    assert plan.answers == 6
    assert plan.unfinished == 0


def test_answers_that_the_budget_cuts_off_count_with_what_they_have():
    loop_forever = TableModel.greedy([1, 2, 0], context=2**20)
    found = measured(loop_forever, loop_forever, [[0], [1], [2]], max_new_tokens=2**19, budget_s=3.0)
    assert len(found.traces) == 3
    assert not any(trace.finished for trace in found.traces)
    assert all(len(trace.passed) > 1 for trace in found.traces)


def test_progress_grows_to_one():
    shares: list[float] = []
    measured(CHAIN, often_right(), PROMPTS, on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("prompts", [[], [[1]]])
def test_a_single_prompt_is_refused(prompts):
    with pytest.raises(ConfigError, match=f"expected at least 2 prompts to plan with, got {len(prompts)}; give more"):
        measured(CHAIN, often_right(), prompts)


class Slow(TableModel):
    """Takes its time over wide calls, so that a round of steps exceeds any small budget."""

    def forward(self, ids, starts, **options):
        time.sleep(0.2 if ids.shape[1] == 1 else 0.0)
        return super().forward(ids, starts, **options)


def test_a_budget_too_small_for_the_steps_says_so():
    with pytest.raises(ConfigError, match=r"a budget of 1 s is too small: 4 rounds of timed steps take about \d+ s"):
        measured(Slow(CHAIN.probs), often_right(), PROMPTS, budget_s=1.0)


def test_a_budget_that_ends_before_any_answer_says_so():
    with pytest.raises(ConfigError, match="ended before two answers had begun"):
        measured(CHAIN, often_right(), PROMPTS, budget_s=0.0)


class Broken(TableModel):
    def propose(self, state, gamma):
        raise RuntimeError("no idea")


def test_a_drafter_that_fails_is_named():
    with pytest.raises(BackendError, match=r"nothing can be planned: degraded: the drafter failed.*no idea"):
        measured(CHAIN, Broken(CHAIN.probs), PROMPTS)


def test_a_prompt_that_cannot_be_answered_is_an_error():
    with pytest.raises(BackendError, match="could not be answered: expected a prompt of at least one token"):
        measured(CHAIN, often_right(), [[], [1], [2]])
