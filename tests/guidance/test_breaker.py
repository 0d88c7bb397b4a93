"""The circuit breaker: a count, a pause, one call that tries."""

from __future__ import annotations

from gkt_plugins.guidance.breaker import Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def broken(clock: Clock, failures: int = 3) -> Breaker:
    breaker = Breaker(failures, 10.0, clock)
    for _ in range(failures):
        assert breaker.admit()
        breaker.failed()
    return breaker


def test_an_engine_that_works_is_always_asked():
    breaker = Breaker(1, 10.0, Clock())
    for _ in range(5):
        assert breaker.admit()
        breaker.succeeded()


def test_an_engine_is_left_alone_after_so_many_failures_in_a_row_and_not_before():
    breaker = Breaker(3, 10.0, Clock())
    for _ in range(2):
        breaker.failed()
    assert breaker.admit()
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert breaker.admit()
    breaker.failed()
    assert not breaker.admit()
    assert breaker.remaining_s == 10.0


def test_after_the_pause_one_call_tries_and_the_others_wait_for_its_outcome():
    clock = Clock()
    breaker = broken(clock)
    clock.now += 9.9
    assert not breaker.admit()
    clock.now += 0.2
    assert breaker.admit()
    assert not breaker.admit()
    breaker.succeeded()
    assert breaker.admit()
    assert not breaker.is_open


def test_a_try_that_fails_begins_another_pause():
    clock = Clock()
    breaker = broken(clock)
    clock.now += 10.0
    assert breaker.admit()
    breaker.failed()
    assert not breaker.admit()
    assert breaker.remaining_s == 10.0
    clock.now += 10.0
    assert breaker.admit()


def test_a_try_that_was_cancelled_lets_the_next_call_try():
    clock = Clock()
    breaker = broken(clock)
    clock.now += 10.0
    assert breaker.admit()
    breaker.dropped()
    assert breaker.admit()


def test_a_try_that_begins_to_answer_lets_others_through_but_one_more_failure_ends_that():
    clock = Clock()
    breaker = broken(clock)
    clock.now += 10.0
    assert breaker.admit()
    breaker.answering()
    assert breaker.admit()
    breaker.failed()
    assert not breaker.admit()


def test_failures_of_calls_that_were_under_way_while_it_opened_only_lengthen_the_pause():
    clock = Clock()
    breaker = broken(clock)
    clock.now += 4.0
    breaker.failed()
    assert breaker.remaining_s == 10.0
    clock.now += 10.0
    assert breaker.admit()
