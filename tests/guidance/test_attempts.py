"""Retries and the circuit breaker, through both drivers: each attempt on record, and none once text has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from itertools import chain, repeat

import pytest

from gkt_plugins.config import load_config
from gkt_plugins.contracts import Call, Capabilities, Engine, Prompt, Sampling
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.answers import Answer
from gkt_plugins.guidance.attempts import LONGEST_RETRY_AFTER_S, Attempts
from gkt_plugins.guidance.batch import run_batch
from gkt_plugins.guidance.events import Request, Rules
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import run_exchange
from gkt_plugins.testing.accounts import Book
from gkt_plugins.testing.engines import EchoEngine, Script, ScriptedEngine, until

SENTENCE = "the cat sat on the mat and slept until noon"


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def attempts(time: Time, count: int = 3, failures: int = 100) -> Attempts:
    return Attempts(attempts=count, breaker_failures=failures, breaker_pause_s=15.0, clock=time, sleep=time.sleep)


def busy(retry_after_s: float | None = None) -> EngineError:
    return EngineError("cloud is busy", retryable=True, retry_after_s=retry_after_s, refused=True)


def in_turn(*scripts: str | Script) -> Callable[[Call], str | Script]:
    """One script a call; the last for all that follow."""
    left: Iterator[str | Script] = chain(scripts, repeat(scripts[-1]))
    return lambda call: next(left)


def failing(error: EngineError, after: int = 0) -> Script:
    return Script(SENTENCE, fails_after=after, error=error)


def parts(teacher: Engine | None, student: Engine, book: Book | None, tries: Attempts) -> Parts:
    rules = Rules(FixedLength(4) if teacher else None, WordCut())
    return Parts(rules, student, teacher, book, "default", attempts=tries)


async def streamed(request: Request, made: Parts) -> Answer:
    exchange = Exchange(request, made)
    async with aclosing(run_exchange(exchange, made)) as pieces:
        async for _ in pieces:
            pass
    return exchange.answer


async def whole(request: Request, made: Parts) -> Answer:
    exchange = Exchange(request, made)
    async with aclosing(run_exchange(exchange, made, whole=True)) as pieces:
        async for _ in pieces:
            pass
    return exchange.answer


async def batched(request: Request, made: Parts) -> Answer:
    async with aclosing(run_batch([request], made)) as answers:
        [answer] = [answer async for answer in answers]
    return answer


drivers = pytest.mark.parametrize("driver", [streamed, whole, batched])
ASKED = Request(Prompt(text=SENTENCE), Sampling(max_tokens=50), request_id="r")


@drivers
async def test_a_call_that_fails_before_any_text_is_tried_again_and_every_attempt_is_on_record(driver):
    book, time = Book(), Time()
    teacher = ScriptedEngine(in_turn(failing(busy()), failing(busy()), SENTENCE), name="cloud")
    answer = await driver(ASKED, parts(teacher, EchoEngine(), book, attempts(time)))
    assert (answer.text, answer.guidance) == (SENTENCE, "the cat sat")
    assert answer.choices[0].notes == ()
    assert [(record.role, record.attempt, record.status) for record in answer.records] == [
        ("teacher", 0, "failed"),
        ("teacher", 1, "failed"),
        ("teacher", 2, "final"),
        ("student", 0, "final"),
    ]
    assert answer.retries == 2
    assert book.nothing_is_open()
    assert len(book.events) == 8
    assert len(time.slept) == 2


@drivers
async def test_after_the_last_attempt_the_student_answers_alone(driver):
    teacher = ScriptedEngine(failing(busy()), name="cloud")
    answer = await driver(ASKED, parts(teacher, EchoEngine(), Book(), attempts(Time())))
    assert len(teacher.calls) == 3
    assert answer.text == SENTENCE
    assert answer.choices[0].notes == (
        "degraded: the student answered alone, because the teacher failed: cloud is busy",
    )


@drivers
async def test_an_error_that_no_retry_can_help_is_not_tried_again(driver):
    teacher = ScriptedEngine(failing(EngineError("the prompt is too long")), name="cloud")
    answer = await driver(ASKED, parts(teacher, EchoEngine(), Book(), attempts(Time())))
    assert len(teacher.calls) == 1
    assert answer.retries == 0


@drivers
async def test_the_student_is_tried_again_too_from_the_same_guidance(driver):
    student = ScriptedEngine(in_turn(failing(busy()), " on the mat."), name="edge")
    answer = await driver(ASKED, parts(ScriptedEngine(SENTENCE), student, Book(), attempts(Time())))
    assert answer.text == "the cat sat on the mat."
    assert [call.prefix for call in student.calls] == ["the cat sat"] * 2


async def test_a_stream_that_breaks_after_its_first_text_is_never_begun_again():
    error = EngineError("connection lost", retryable=True)
    teacher = ScriptedEngine(failing(error, after=9), name="cloud")
    student = ScriptedEngine(failing(error, after=4), name="edge")
    answer = await streamed(ASKED, parts(teacher, student, Book(), attempts(Time())))
    assert (len(teacher.calls), len(student.calls)) == (1, 1)
    assert answer.guidance == "the cat"
    assert "the student failed after" in str(answer.errors[0])
    assert [record.attempt for record in answer.records] == [0, 0]


@drivers
async def test_waits_are_drawn_from_windows_that_double_up_to_the_longest(driver):
    time = Time()
    tries = Attempts(attempts=8, wait_s=0.2, max_wait_s=1.5, breaker_failures=100, clock=time, sleep=time.sleep)
    await driver(ASKED, parts(None, ScriptedEngine(failing(busy())), Book(), tries))
    windows = [0.4, 0.8, 1.5, 1.5, 1.5, 1.5, 1.5]
    assert len(time.slept) == len(windows)
    assert all(0 <= slept <= window for slept, window in zip(time.slept, windows, strict=True))
    assert len(set(time.slept)) == len(windows)  # jitter: no two callers come back together


@drivers
async def test_an_engine_that_names_its_wait_is_not_asked_before(driver):
    time = Time()
    student = ScriptedEngine(in_turn(failing(busy(retry_after_s=17.0)), "Yes."), name="edge")
    answer = await driver(ASKED, parts(None, student, Book(), attempts(time)))
    assert answer.text == "Yes."
    assert time.slept == [17.0]


@drivers
async def test_an_engine_that_wants_a_very_long_wait_is_not_asked_again(driver):
    time = Time()
    student = ScriptedEngine(failing(busy(retry_after_s=LONGEST_RETRY_AFTER_S + 1)), name="edge")
    answer = await driver(ASKED, parts(None, student, Book(), attempts(time)))
    assert len(student.calls) == 1
    assert time.slept == []
    [error] = answer.errors
    assert isinstance(error, EngineError)
    assert error.retryable


@drivers
async def test_a_call_that_was_turned_away_used_nothing_and_one_that_broke_is_estimated(driver):
    broke = EngineError("timed out", retryable=True)
    student = ScriptedEngine(in_turn(failing(busy()), failing(broke), "Yes."), name="edge")
    answer = await driver(ASKED, parts(None, student, Book(), attempts(Time())))
    refused, broken, final = (record.usage for record in answer.records)
    assert (refused.prompt_tokens, refused.completion_tokens, refused.estimated) == (0, 0, False)
    assert broken.prompt_tokens is not None
    assert broken.prompt_tokens > 0
    assert (broken.completion_tokens, broken.estimated) == (0, True)
    assert final.completion_tokens == 1


@drivers
async def test_an_engine_that_keeps_failing_is_left_alone_and_no_attempt_is_recorded_that_was_not_made(driver):
    time = Time()
    teacher = ScriptedEngine(failing(busy()), name="cloud")
    made = parts(teacher, EchoEngine(), Book(), attempts(time, count=3, failures=4))
    await driver(ASKED, made)
    await driver(ASKED, made)
    assert len(teacher.calls) == 4  # three, and the one that opened the breaker
    answer = await driver(ASKED, made)
    assert len(teacher.calls) == 4
    assert [record.role for record in answer.records] == ["student"]
    assert answer.choices[0].notes == (
        "degraded: the student answered alone, because the teacher failed: the engine 'cloud' failed 4 times in a row "
        "and is left alone for 15 s; try again later",
    )


@drivers
async def test_an_engine_that_recovers_is_used_again_after_the_pause(driver):
    time = Time()
    teacher = ScriptedEngine(in_turn(failing(busy()), failing(busy()), SENTENCE), name="cloud")
    made = parts(teacher, EchoEngine(), Book(), attempts(time, count=1, failures=2))
    for _ in range(3):
        await driver(ASKED, made)
    assert len(teacher.calls) == 2
    time.now += 15.0
    for _ in range(2):
        assert (await driver(ASKED, made)).guidance == "the cat sat"
    assert len(teacher.calls) == 4


@drivers
async def test_a_request_that_is_itself_at_fault_does_not_count_against_the_engine(driver):
    student = ScriptedEngine(in_turn(*[failing(EngineError("the prompt is too long"))] * 5, "Yes."), name="edge")
    made = parts(None, student, Book(), attempts(Time(), failures=2))
    for _ in range(5):
        assert (await driver(ASKED, made)).errors
    assert (await driver(ASKED, made)).text == "Yes."


async def test_streams_that_break_half_way_count_against_the_engine():
    student = ScriptedEngine(failing(EngineError("connection lost", retryable=True), after=4), name="edge")
    made = parts(None, student, Book(), attempts(Time(), failures=2))
    for _ in range(3):
        await streamed(ASKED, made)
    assert len(student.calls) == 2


async def test_a_cancelled_trial_does_not_keep_the_engine_out_of_use():
    time = Time()
    student = ScriptedEngine(in_turn(failing(busy()), Script("Yes.", hangs_after=0), "Yes."), name="edge")
    made = parts(None, student, Book(), attempts(time, count=1, failures=1))
    await streamed(ASKED, made)
    time.now += 15.0
    task = asyncio.create_task(streamed(ASKED, made))
    await until(lambda: len(student.calls) == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await streamed(ASKED, made)).text == "Yes."


async def test_closing_while_waiting_for_the_next_attempt_leaves_the_attempts_made_on_record():
    book = Book()

    async def for_ever(seconds: float) -> None:
        await asyncio.Event().wait()

    tries = Attempts(sleep=for_ever)
    task = asyncio.create_task(streamed(ASKED, parts(None, ScriptedEngine(failing(busy())), book, tries)))
    await until(lambda: book.closings)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(record.attempt, record.status) for record in book.closings] == [(0, "failed")]
    assert book.nothing_is_open()


async def test_a_row_that_waits_for_its_next_attempt_holds_up_no_other():
    released = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await released.wait()

    def script(call: Call) -> str | Script:
        slow = call.prompt.text == "slow" and not released.is_set()
        return failing(busy()) if slow else "Yes."

    def asked(text: str) -> Request:
        return Request(Prompt(text=text), request_id=text)

    student = ScriptedEngine(script, capabilities=Capabilities(batch=True))
    made = parts(None, student, Book(), Attempts(sleep=sleep))
    seen: list[str] = []
    async with aclosing(run_batch([asked("slow"), asked("a"), asked("b")], made)) as answers:
        async for answer in answers:
            seen.append(answer.request_id)
            if len(seen) == 2:
                released.set()
    assert sorted(seen[:2]) == ["a", "b"]
    assert seen[2] == "slow"


def test_the_configuration_s_retries_are_what_attempts_takes():
    config = load_config(text="[retries]\nattempts = 1\n")
    tries = Attempts.from_section(config.retries)
    assert tries.wait_s("cloud", busy(), 0) is None
    assert Attempts.from_section(load_config(text="").retries).wait_s("cloud", busy(), 0) is not None


def test_the_engines_of_one_process_share_their_breaker_by_name():
    tries = attempts(Time(), failures=1)
    tries.breaker("cloud").failed()
    refusal = tries.refusal("cloud")
    assert refusal is not None
    assert (refusal.retry_after_s, refusal.retryable) == (15.0, True)
    assert tries.refusal("edge") is None
