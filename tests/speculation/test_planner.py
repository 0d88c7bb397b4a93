"""The planner: replayed answers, fitted costs, predictions and the decision. No clock, no model, fixed seeds."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkt_plugins.speculation.formulas import block_efficiency
from gkt_plugins.speculation.planner import Measurement, break_even_acceptance, make_plan
from gkt_plugins.speculation.replay import AnswerTrace, Replay, active_rows, decode_seconds, fill
from gkt_plugins.speculation.step_costs import PrefillTime, StepCosts, StepTime

T, F = True, False


class Machine:
    """A machine whose steps cost what we say, in seconds."""

    def __init__(self, *, draft: float = 0.02, per_token: float = 0.05, second_token: float = 0.0) -> None:
        self.draft, self.per_token, self.second_token = draft, per_token, second_token

    def target(self, batch: int, gamma: int) -> float:
        return 1.0 + self.per_token * batch * gamma

    def rest(self, batch: int, gamma: int) -> float:
        return 0.01 + 0.001 * gamma

    def drafting(self, gamma: int, behind: bool) -> float:
        return (0.005 + self.draft * gamma + self.second_token * behind) if gamma else 0.0

    def block(self, batch: int, gamma: int, *, behind: bool) -> float:
        return self.target(batch, gamma) + self.rest(batch, gamma) + self.drafting(gamma, behind)

    def prefill(self, tokens: int) -> float:
        return 0.1 + 0.02 * tokens

    def draft_prefill(self, tokens: int) -> float:
        return 0.001 * tokens

    def steps(self, *, batches=(1, 2, 4, 8), gammas=range(9), rounds=5, noise=0.0, hiccups=0.0) -> list[StepTime]:
        rng = random.Random(0)
        found = []
        for number, batch, gamma, behind in product(range(rounds), batches, gammas, (F, T)):
            slow = (1 + noise * rng.random()) * (5.0 if rng.random() < hiccups else 1.0)
            target, rest = self.target(batch, gamma) * slow, self.rest(batch, gamma) * slow
            found.append(StepTime(number, batch, gamma, target, self.drafting(gamma, behind) * slow, rest, behind))
        return found

    def prefills(self) -> list[PrefillTime]:
        entries = []
        for tokens in (10, 20, 40, 80):
            drafting = self.drafting(1, False) + self.draft_prefill(tokens)
            step = StepTime(0, 4, 1, self.target(4, 1), drafting, 0.0, False, False)
            entries.append(PrefillTime(tokens, self.prefill(tokens), step))
        return entries


def traces(alpha: float, *, count: int = 24, tokens: int = 120, seed: int = 0) -> list[AnswerTrace]:
    rng = random.Random(seed)
    return [AnswerTrace(10, (None, *(rng.random() < alpha for _ in range(tokens - 1)))) for _ in range(count)]


def measurement(machine: Machine, alpha: float, **steps) -> Measurement:
    return Measurement(tuple(traces(alpha)), tuple(machine.steps(**steps)), tuple(machine.prefills()), 120, 1.0)


# ------------------------------------------------------------------------------------------------------------- replay


def test_blocks_are_replayed_with_any_gamma():
    answer = Replay(5, [F, T, T, T, F, T, F, F, T], limit=100)  # the first token comes with the prompt
    # gamma 2: TT+T, F, T+F, F, T; gamma 4: TTT+F, T+F, F, T; gamma 1: T+T, T+F, T+F, F, T
    assert [answer.blocks(gamma) for gamma in (1, 2, 4)] == [5, 5, 4]
    assert answer.counts(2) == [(5, 3), (2, 1)]


def test_independent_acceptance_gives_the_closed_form():
    answers = [Replay(1, [F, *t.passed[1:]], limit=10**6) for t in traces(0.7, count=40, tokens=2000)]
    for gamma in (1, 4, 8):
        blocks = sum(answer.blocks(gamma) for answer in answers)
        tokens = sum(answer.tokens - 1 for answer in answers)
        # A block's tokens have a standard deviation of at most gamma / 2, over about 20,000 blocks.
        assert tokens / blocks == pytest.approx(block_efficiency(0.7, gamma), abs=4 * gamma / 2 / blocks**0.5 + 0.01)


def test_a_passage_that_is_always_hard_is_not_spread_over_the_answer():
    # Half of the tokens pass, but all in one half: far more per block than independent tokens of the same rate bring.
    answer = Replay(1, [F] + [T] * 100 + [F] * 100, limit=1000)
    assert 200 / answer.blocks(4) == pytest.approx(200 / (20 + 100))
    assert 200 / answer.blocks(4) < block_efficiency(0.5, 4)  # here fewer, because hard blocks are as many as tokens


def test_positions_that_were_not_tested_are_drawn_at_the_rate_of_those_that_follow_a_pass():
    rng = random.Random(3)
    passed = tuple(None if rng.random() < 0.2 else rng.random() < 0.8 for _ in range(20_000))
    [filled] = fill([AnswerTrace(1, passed)])
    drawn = [now for now, known in zip(filled, passed, strict=True) if known is None]
    assert sum(drawn) / len(drawn) == pytest.approx(0.8, abs=4 * (0.16 / len(drawn)) ** 0.5 + 0.015)
    assert all(now == known for now, known in zip(filled, passed, strict=True) if known is not None)


def test_a_queue_s_shares_add_up_to_its_wall_time_and_no_step_is_free():
    machine = Machine()
    [one] = [Replay(10, [F] * 5, limit=100)]
    seconds = decode_seconds([one] * 3, batch=2, gamma=0, costs=machine)
    # Two rows enter and take 4 steps together, then the third takes 4 alone.
    step = machine.block(2, 0, behind=False) * 4 + machine.block(1, 0, behind=False) * 4
    assert sum(seconds) == pytest.approx(step + machine.prefill(20) + machine.prefill(10))
    assert seconds[0] == pytest.approx(seconds[1])


def test_a_row_does_not_draft_more_than_it_may_write():
    machine = Machine()
    answer = Replay(10, [F, T, T, T], limit=4)
    # Three tokens are left: two drafts and the target's own, however large gamma is.
    expected = machine.block(1, 2, behind=False) + machine.prefill(10) + machine.draft_prefill(10)
    assert sum(decode_seconds([answer], batch=1, gamma=8, costs=machine)) == pytest.approx(expected)


def test_a_draft_that_was_right_throughout_begins_its_next_block_with_two_tokens():
    slow = Machine(second_token=0.5)
    answers = [Replay(10, [F, *[T] * 9], limit=1000), Replay(10, [F, *[F, T] * 10], limit=1000)]
    for answer, second in zip(answers, (1, 0), strict=True):  # 5 and 4 tokens of the first; one and one of the second
        plain = sum(decode_seconds([answer], batch=1, gamma=4, costs=Machine()))
        assert sum(decode_seconds([answer], batch=1, gamma=4, costs=slow)) - plain == pytest.approx(0.5 * second)


def test_rows_under_way_shrink_as_answers_end():
    assert active_rows([3, 1, 2]) == [3, 2, 1]
    assert active_rows([]) == []


# -------------------------------------------------------------------------------------------------------------- costs


def test_costs_are_those_of_the_machine():
    machine = Machine(second_token=0.3)
    costs = StepCosts.fit(machine.steps(), machine.prefills())
    for batch, gamma, behind in product((1, 2, 4, 8), range(9), (F, T)):
        assert costs.block(batch, gamma, behind=behind) == pytest.approx(machine.block(batch, gamma, behind=behind))
    assert costs.prefill(50) == pytest.approx(machine.prefill(50))
    assert costs.draft_prefill(50) == pytest.approx(machine.draft_prefill(50), rel=1e-6)
    assert costs.cost_ratio(1) == pytest.approx(0.02)


def test_costs_between_measured_ones_lie_on_straight_lines():
    machine = Machine()
    costs = StepCosts.fit(machine.steps(batches=(1, 4, 8), gammas=(0, 2, 4, 8)), machine.prefills())
    assert costs.batches == (1, 4, 8)
    assert costs.gammas == (0, 2, 4, 8)
    assert costs.block(2, 4, behind=False) == pytest.approx(machine.block(2, 4, behind=False))
    assert costs.block(4, 5, behind=False) == pytest.approx(machine.block(4, 5, behind=False))


def test_a_slow_moment_now_and_then_hardly_moves_a_cost():
    machine = Machine()
    costs = StepCosts.fit(machine.steps(rounds=12, hiccups=0.1), machine.prefills())
    # A plain mean would lie 40 % too high.
    assert costs.block(4, 3, behind=False) == pytest.approx(machine.block(4, 3, behind=False), rel=0.05)


def test_catching_up_is_no_cost_of_an_ordinary_block():
    machine = Machine()
    late = [StepTime(n, 1, 3, 1.15, 9.0, 0.01, False, False) for n in range(50)]
    costs = StepCosts.fit([*machine.steps(), *late], machine.prefills())
    assert costs.drafting(1, 3, False) == pytest.approx(machine.drafting(3, False))


def test_a_gamma_that_only_some_batch_sizes_have_leaves_no_hole():
    machine = Machine()
    more = machine.steps(batches=(8,), gammas=(12,))
    costs = StepCosts.fit([*machine.steps(), *more], machine.prefills())
    assert 12 not in costs.gammas
    assert costs.verify(8, 8) == pytest.approx(machine.target(8, 8))


@pytest.mark.parametrize("steps", [[], [StepTime(0, 1, 0, 1, 0, 0)], [StepTime(n, 1, 2, 1, 1, 0) for n in range(4)]])
def test_costs_without_plain_steps_or_from_one_round_are_refused(steps):
    with pytest.raises(ValueError, match="plain steps"):
        StepCosts.fit(steps, [])


# --------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize(("alpha", "batch"), [(0.8, 1), (0.6, 1), (0.8, 8)])
def test_the_prediction_is_what_such_a_queue_takes(alpha, batch):
    machine = Machine()
    plan = make_plan(measurement(machine, alpha), batches=[batch], gamma_max=6, rows=2 * batch)
    other = [Replay(10, [F, *t.passed[1:]], limit=120) for t in traces(alpha, count=200, seed=9)]
    for gamma in (1, 3, 6):
        plain, fast = (
            sum(
                sum(decode_seconds(other[i : i + 2 * batch], batch=batch, gamma=g, costs=machine))
                for i in range(0, 200 - 2 * batch, 2 * batch)
            )
            for g in (0, gamma)
        )
        # Both sides have seen at least 2,800 tokens, whose acceptance they know to a hundredth or so.
        assert plan.cell(batch, gamma).speedup.value == pytest.approx(plain / fast, rel=0.05)
        assert plan.cell(batch, gamma).speedup.low < plain / fast * 1.03
        assert plan.cell(batch, gamma).speedup.high > plain / fast * 0.97


def test_a_cheap_draft_that_is_often_right_is_enabled():
    plan = make_plan(measurement(Machine(), 0.8), batches=[1, 8], gamma_max=8)
    assert plan.decision == "enable"
    assert plan.best(1).speedup.value > plan.best(8).speedup.value > 1.05
    assert plan.best(1).gamma > plan.best(8).gamma
    assert plan.reason.startswith(f"batch 1: gamma {plan.best(1).gamma} is {plan.best(1).speedup.value:.2f} times (")


def test_a_draft_as_dear_as_the_target_is_not_enabled_even_if_it_is_always_right():
    plan = make_plan(measurement(Machine(draft=1.0), 1.0), batches=[1, 4], gamma_max=4)
    assert plan.decision == "do not enable"
    assert "a draft step takes 1.00 of a target step, and no acceptance would make up for it" in plan.reason
    assert all(cell.break_even is None for cell in plan.cells)


def test_a_draft_that_is_seldom_right_is_not_enabled_and_the_reason_says_how_often_it_would_have_to_be():
    plan = make_plan(measurement(Machine(draft=0.2, per_token=0.2), 0.2), batches=[1], gamma_max=3)
    assert plan.decision == "do not enable"
    cell = plan.best(1)
    assert cell.break_even is not None
    assert f"where {cell.break_even:.2f} only breaks even" in plan.reason
    assert plan.acceptance[0].acceptance_rate.value == pytest.approx(0.2, abs=4 * (0.16 / 2800) ** 0.5 + 0.01)


def test_where_only_small_batches_gain_the_reason_names_the_large_ones():
    plan = make_plan(measurement(Machine(per_token=0.2), 0.5), batches=[1, 8], gamma_max=4)
    assert plan.decision == "enable"
    assert (plan.pays(1), plan.pays(8)) == (True, False)
    assert "it does not pay at batch 8" in plan.reason


def test_a_gain_within_the_prediction_s_own_error_is_not_enabled():
    plan = make_plan(measurement(Machine(draft=0.43, per_token=0.0), 0.5), batches=[1], gamma_max=1)
    assert 1.0 < plan.best(1).speedup.low < plan.best(1).speedup.value < 1.05
    assert plan.decision == "do not enable"


def test_intervals_hold_the_value_and_noisy_clocks_widen_them():
    quiet = make_plan(measurement(Machine(), 0.7), batches=[4], gamma_max=3)
    noisy = make_plan(measurement(Machine(), 0.7, noise=1.0), batches=[4], gamma_max=3)
    for one, other in zip(quiet.cells, noisy.cells, strict=True):
        assert one.speedup.low <= one.speedup.value <= one.speedup.high
        assert other.speedup.high / other.speedup.low > one.speedup.high / one.speedup.low


def test_acceptance_by_position_is_that_of_the_answers():
    # Passes come in runs of exactly three, so the fourth position never passes.
    runs = AnswerTrace(10, (None, *[T, T, T, F] * 10))
    measured = Measurement((runs, runs), tuple(Machine().steps()), tuple(Machine().prefills()), 100, 1.0)
    plan = make_plan(measured, batches=[1], gamma_max=5)
    assert plan.acceptance[4].by_position == (1.0, 1.0, 1.0, 0.0, None)
    assert plan.acceptance[4].block_efficiency.value == pytest.approx(4.0)


def test_everything_is_in_the_json_object():
    import json

    plan = make_plan(measurement(Machine(), 0.7), batches=[1, 4], gamma_max=3)
    known = json.loads(json.dumps(plan.as_json()))
    assert known["decision"] == "enable"
    assert len(known["cells"]) == 6
    assert known["best"]["4"]["gamma"] == plan.best(4).gamma
    assert known["verify_in_plain_calls"]["4"]["3"] == pytest.approx(1.6)
    assert known["cost_ratio"]["1"] == pytest.approx(0.02)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_acceptance_is_above_break_even_exactly_where_speculation_is_faster(alpha):
    plan = make_plan(measurement(Machine(draft=0.2, per_token=0.15), alpha), batches=[1, 4, 8], gamma_max=8)
    for cell in plan.cells:
        measured = plan.acceptance[cell.gamma - 1].acceptance_rate.value
        assert (cell.break_even is not None and measured > cell.break_even) == (cell.speedup.value > 1)


@given(st.floats(0, 1), st.integers(1, 12))
def test_break_even_is_the_acceptance_whose_tokens_pay_for_the_block(alpha, gamma):
    found = break_even_acceptance(block_efficiency(alpha, gamma), gamma)
    assert found is not None
    assert block_efficiency(found, gamma) == pytest.approx(block_efficiency(alpha, gamma), abs=1e-6)


def test_there_is_no_break_even_for_a_block_that_costs_more_than_all_its_tokens():
    assert break_even_acceptance(4.01, 3) is None
    assert break_even_acceptance(0.9, 3) == 0.0


@pytest.mark.parametrize(("batches", "gamma_max"), [([], 3), ([0], 3), ([1], 0)])
def test_batch_sizes_and_gammas_below_one_are_refused(batches, gamma_max):
    with pytest.raises(ValueError, match="at least 1"):
        make_plan(measurement(Machine(), 0.5), batches=batches, gamma_max=gamma_max)


def test_planning_loads_no_torch():
    code = "import sys, gkt_plugins.speculation.planner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
