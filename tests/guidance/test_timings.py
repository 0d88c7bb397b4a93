"""Whose the seconds of a request are: the teacher's, the student's, or our own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gkt_plugins.contracts import Prompt
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance import exchange as exchange_module
from gkt_plugins.guidance.attempts import Attempts
from gkt_plugins.guidance.events import TEACHER, CallKey, Request, Rules
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import run_exchange
from gkt_plugins.guidance.timings import CallTiming, Timings
from gkt_plugins.testing.engines import EchoEngine, Script, ScriptedEngine

FIRST, SECOND = CallKey("student", 0), CallKey("student", 1)


def timings(**calls: tuple[float, float | None]) -> Timings:
    """Of a request that began at 100; ``teacher``, ``first`` and ``second`` name its calls."""
    keys = {"teacher": TEACHER, "first": FIRST, "second": SECOND}
    made = Timings(100.0)
    made.update({keys[name]: CallTiming(started, None, ended) for name, (started, ended) in calls.items()})
    return made


def test_time_in_which_no_call_is_under_way_is_our_own():
    made = timings(teacher=(101.0, 103.0), first=(104.0, 109.0))
    assert made.own_s(110.0) == 1.0 + 1.0 + 1.0
    assert made.role_s("teacher", 110.0) == 2.0
    assert made.role_s("student", 110.0) == 5.0


def test_calls_that_run_side_by_side_count_once():
    made = timings(first=(100.0, 106.0), second=(102.0, 104.0))
    assert made.role_s("student", 110.0) == 6.0
    made = timings(first=(100.0, 106.0), second=(102.0, 109.0))
    assert made.role_s("student", 110.0) == 9.0
    assert made.own_s(110.0) == 1.0


def test_a_call_that_has_not_ended_lasts_until_now():
    made = timings(teacher=(101.0, None))
    assert made.role_s("teacher", 105.0) == 4.0
    assert made.own_s(105.0) == 1.0


def test_a_role_without_a_call_has_no_seconds_rather_than_zero():
    assert timings(first=(100.0, 101.0)).role_s("teacher", 102.0) is None
    assert Timings(100.0).first_text_s is None


def test_without_any_call_all_of_it_is_our_own():
    assert Timings(100.0).own_s(103.0) == 3.0


class Watch:
    """Reads a second more each time it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now

    time = perf_counter


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    monkeypatch.setattr(exchange_module, "time", made)
    return made


async def run(made: Parts, each: Callable[[], None] = lambda: None) -> Exchange:
    exchange = Exchange(Request(Prompt(text="the cat sat on the mat")), made)
    async for _ in run_exchange(exchange, made):
        each()
    return exchange


async def test_an_exchange_notes_when_its_calls_began_first_gave_text_and_ended(watch):
    made = Parts(Rules(FixedLength(3), WordCut()), EchoEngine(), ScriptedEngine("the cat sat on the mat"))
    exchange = await run(made)
    teacher, student = exchange.timings[TEACHER], exchange.timings[FIRST]
    for timing in (teacher, student):
        assert timing.first_text is not None
        assert timing.ended is not None
        assert exchange.timings.began < timing.started < timing.first_text < timing.ended
    assert teacher.ended is not None
    assert teacher.ended < student.started
    assert exchange.timings.first_text_s is not None
    assert exchange.timings.ended is not None
    assert student.ended is not None
    assert student.ended < exchange.timings.ended


async def test_waits_between_attempts_belong_to_the_call(watch):
    left = iter([Script("", fails_after=0, error=EngineError("busy", retryable=True)), Script("Yes.")])

    async def sleep(seconds: float) -> None:
        watch.now += 1000.0
        await asyncio.sleep(0)

    student = ScriptedEngine(lambda call: next(left))
    exchange = await run(Parts(Rules(None, WordCut()), student, attempts=Attempts(sleep=sleep)))
    student_s = exchange.timings.role_s("student", watch.now)
    assert student_s is not None
    assert student_s > 1000.0
    assert exchange.timings.own_s(watch.now) < 100.0
