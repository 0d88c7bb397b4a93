"""Both drivers, with scripted engines: the same machine, so the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from gkt_plugins.contracts import Call, Capabilities, Completion, Engine, Prompt, Sampling, Usage, UsageRecord
from gkt_plugins.errors import BackendError, EngineError, GktError
from gkt_plugins.guidance.answers import Answer
from gkt_plugins.guidance.batch import BatchOptions, run_batch
from gkt_plugins.guidance.events import Emit, FailChoice, Finish, Request, Rules
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import run_exchange, run_request
from gkt_plugins.testing.accounts import Book
from gkt_plugins.testing.engines import EchoEngine, Script, ScriptedEngine, by_characters, in_one_piece, until


def parts(
    teacher: Engine | None = None, student: Engine | None = None, book: Book | None = None, **rules: str
) -> Parts:
    length = FixedLength(4) if teacher else None
    made = Rules(length, WordCut(), **rules)  # type: ignore[arg-type]
    return Parts(made, student or EchoEngine(name="edge"), teacher, book, "default")


def ask(text: str, n: int = 1, stop: tuple[str, ...] = ()) -> Request:
    return Request(Prompt(text=text), Sampling(max_tokens=50, stop=stop), n, request_id=text)


async def streamed(request: Request, made: Parts) -> Answer:
    exchange = Exchange(request, made)
    async with aclosing(run_exchange(exchange, made)) as pieces:
        async for _ in pieces:
            pass
    return exchange.answer


async def batched(requests: Sequence[Request], made: Parts, options: BatchOptions | None = None) -> dict[str, Answer]:
    async with aclosing(run_batch(requests, made, options)) as answers:
        return {answer.request_id: answer async for answer in answers}


SENTENCE = "the cat sat on the mat and slept until noon"


@pytest.mark.parametrize("chunks", [by_characters, in_one_piece])
async def test_a_streamed_and_a_batched_request_give_the_same_answer(chunks):
    def made() -> Parts:
        return parts(ScriptedEngine(SENTENCE, name="cloud", chunks=chunks), EchoEngine(name="edge"))

    one = await streamed(ask(SENTENCE), made())
    [other] = (await batched([ask(SENTENCE)], made())).values()
    assert one.text == other.text == SENTENCE
    assert one.guidance == other.guidance == "the cat sat"
    assert [choice.finish_reason for choice in (*one.choices, *other.choices)] == ["stop", "stop"]


async def test_the_answer_streams_while_the_models_write():
    pieces = run_request(ask(SENTENCE), parts(ScriptedEngine(SENTENCE), EchoEngine()))
    texts = [piece.text async for piece in pieces if isinstance(piece, Emit)]
    assert texts[:4] == ["the", " cat", " sat", " on"]


async def test_every_call_is_on_record_before_it_goes_out_and_before_the_answer_ends():
    book = Book()
    teacher = ScriptedEngine(SENTENCE, name="cloud", model="large")
    before: list[int] = []

    def student_script(call: Call) -> str:
        before.append(len(book.events))
        return " rest."

    made = parts(teacher, ScriptedEngine(student_script, name="edge", model="small"), book)
    async with aclosing(run_request(ask(SENTENCE), made)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Finish):
                assert book.nothing_is_open()
    assert before == [3]  # teacher opened and closed, student opened
    assert [(r.role, r.engine, r.model, r.status, r.pipeline) for _, r in book.events] == [
        ("teacher", "cloud", "large", "open", "default"),
        ("teacher", "cloud", "large", "final", "default"),
        ("student", "edge", "small", "open", "default"),
        ("student", "edge", "small", "final", "default"),
    ]
    opened, closed = book.events[0][1], book.events[1][1]
    assert opened.started_at == closed.started_at > 0


async def test_the_answer_carries_the_records_as_the_ledger_returned_them_and_totals_by_role():
    answer = await streamed(ask(SENTENCE, n=2), parts(ScriptedEngine(SENTENCE), EchoEngine(), Book()))
    assert [record.cost_nano for record in answer.records] == [7, 7, 7]
    assert answer.usage["teacher"].completion_tokens == 4
    assert answer.usage["student"].completion_tokens == 2 * 7


async def test_choices_that_finish_at_once_make_one_answer_with_all_their_records():
    requests = [replace(ask(SENTENCE, n=3), request_id=str(i)) for i in range(5)]
    async with aclosing(run_batch(requests, parts(ScriptedEngine(SENTENCE), EchoEngine(), Book()))) as answers:
        seen = [answer async for answer in answers]
    assert sorted(answer.request_id for answer in seen) == list("01234")
    assert {(len(answer.choices), len(answer.records)) for answer in seen} == {(3, 4)}


async def test_the_teacher_gets_its_calls_in_batches_and_the_student_its_own():
    teacher, student = ScriptedEngine(SENTENCE), EchoEngine()
    requests = [replace(ask(SENTENCE), request_id=str(i)) for i in range(25)]
    answers = await batched(requests, parts(teacher, student), BatchOptions(teacher_batch=10, student_batch=1))
    assert teacher.batches == [10, 10, 5]
    assert student.batches == [1] * 25
    assert {answer.text for answer in answers.values()} == {SENTENCE}


async def test_an_engine_that_does_not_batch_gets_single_calls_side_by_side():
    alone = Capabilities(batch=False)
    entered = 0
    all_in = asyncio.Event()

    class Waiting(ScriptedEngine):
        async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
            nonlocal entered
            entered += 1
            if entered == 3:
                all_in.set()
            await all_in.wait()  # for ever, unless three calls are at work at once
            return await super().generate(calls)

    student = Waiting("Yes.", capabilities=alone)
    requests = [ask(f"row {i}") for i in range(3)]
    answers = await batched(requests, parts(None, student), BatchOptions(student_batch=3))
    assert student.batches == [1, 1, 1]
    assert len(answers) == 3


async def test_no_more_requests_are_begun_than_may_be_in_flight():
    begun = 0

    def endless():
        nonlocal begun
        while True:
            begun += 1
            yield ask(f"row {begun}")

    async with aclosing(run_batch(endless(), parts(None, EchoEngine()), BatchOptions(in_flight=5))) as answers:
        seen = [await anext(answers) for _ in range(3)]
    assert len(seen) == 3
    assert begun <= 3 + 5 + 1


async def test_one_bad_row_harms_no_other():
    def script(call: Call) -> str | Script:
        return Script("", fails_after=0) if call.prompt.text == "bad" else " fine"

    made = parts(ScriptedEngine("well then we"), ScriptedEngine(script))
    answers = await batched([ask("good"), ask("bad"), ask(" "), ask("better")], made)
    assert answers["good"].text == answers["better"].text == "well then we"
    assert str(answers[" "].error) == "the prompt is empty; give it at least one word"

    answers = await batched([ask("good"), ask("bad"), ask("better")], parts(None, ScriptedEngine(script, name="edge")))
    [error] = answers["bad"].errors
    assert str(error) == (
        "the student failed after 0 characters of the answer were released: edge failed as its script says"
    )
    assert answers["good"].text == answers["better"].text == " fine"


class Broken(ScriptedEngine):
    """Raises where it should return an error."""

    async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
        raise KeyError("bug")

    async def stream(self, call: Call):
        raise KeyError("bug")
        yield  # pragma: no cover - makes it a generator


async def test_an_engine_with_a_bug_fails_like_any_other_and_is_named():
    made = parts(Broken("", name="cloud"), EchoEngine())
    for answer in (await streamed(ask(SENTENCE), made), (await batched([ask(SENTENCE)], made))[SENTENCE]):
        [note] = answer.choices[0].notes
        assert note.startswith("degraded: the student answered alone, because the teacher failed: the engine 'cloud'")
        assert answer.text == SENTENCE


async def test_an_engine_that_answers_too_few_calls_fails_its_batch():
    class Short(ScriptedEngine):
        async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
            return []

    answers = await batched([ask("a"), ask("b")], parts(None, Short("", name="edge")))
    assert {str(answer.errors[0]).split(": ", 1)[1] for answer in answers.values()} == {
        "the engine 'edge' must give 2 answers, gave 0"
    }


async def test_a_teacher_that_dies_in_the_middle_of_its_stream_is_continued_seamlessly():
    teacher = ScriptedEngine(Script(SENTENCE, fails_after=9), name="cloud")
    answer = await streamed(ask(SENTENCE), parts(teacher, EchoEngine(), Book()))
    assert (answer.text, answer.guidance) == (SENTENCE, "the cat")
    assert [record.status for record in answer.records] == ["failed", "final"]


async def test_a_request_whose_teacher_must_not_fail_raises_the_teacher_s_error():
    made = parts(ScriptedEngine(Script("", fails_after=0), name="cloud"), on_teacher_error="fail")
    with pytest.raises(EngineError, match="cloud failed as its script says"):
        await streamed(ask(SENTENCE), made)
    [answer] = (await batched([ask(SENTENCE)], made)).values()
    assert isinstance(answer.error, EngineError)
    assert answer.choices == ()


async def test_a_stop_string_across_the_seam_cancels_the_student_s_stream():
    book = Book()
    student = ScriptedEngine(Script(" on the mat for ever", hangs_after=11), name="edge")
    answer = await streamed(ask(SENTENCE, stop=("sat on the",)), parts(ScriptedEngine(SENTENCE), student, book))
    assert (answer.text, answer.choices[0].finish_reason) == ("the cat ", "stop")
    assert len(student.cancelled) == 1
    assert book.statuses() == [("teacher", "final"), ("student", "cancelled")]


async def test_closing_the_stream_cancels_the_calls_and_puts_their_usage_on_record():
    book = Book()
    student = ScriptedEngine(Script(" slept and slept", hangs_after=6))
    pieces = run_request(ask(SENTENCE, n=2), parts(ScriptedEngine(SENTENCE), student, book))
    async for piece in pieces:
        if isinstance(piece, Emit) and piece.role == "student":
            break
    await pieces.aclose()
    assert len(student.cancelled) == 2
    assert book.nothing_is_open()
    assert book.statuses() == [("teacher", "final"), ("student", "cancelled"), ("student", "cancelled")]


async def test_cancelling_the_reader_of_a_stream_cancels_the_teacher():
    called = asyncio.Event()

    def script(call: Call) -> Script:
        called.set()
        return Script(SENTENCE, hangs_after=7)

    book, teacher = Book(), ScriptedEngine(script)
    task = asyncio.create_task(streamed(ask(SENTENCE), parts(teacher, EchoEngine(), book)))
    await called.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(teacher.cancelled) == 1
    assert book.statuses() == [("teacher", "cancelled")]


async def test_closing_a_batch_cancels_what_is_under_way_and_puts_it_on_record():
    book = Book()

    def script(call: Call) -> Script:
        return Script(" done", hangs_after=None if call.prompt.text == "quick" else 0)

    student = ScriptedEngine(script, capabilities=Capabilities(batch=False))
    async with aclosing(run_batch([ask("quick"), ask("slow"), ask("slower")], parts(None, student, book))) as answers:
        first = await anext(answers)
    assert first.request_id == "quick"
    assert len(student.cancelled) == 2
    assert book.nothing_is_open()
    assert sorted(book.statuses()) == [("student", "cancelled"), ("student", "cancelled"), ("student", "final")]


async def test_a_ledger_that_cannot_be_written_stops_the_run_before_anything_goes_out():
    class Full(Book):
        async def opened(self, record: UsageRecord) -> None:
            raise BackendError("the disk is full")

    student = EchoEngine()
    with pytest.raises(BackendError, match="the disk is full"):
        await streamed(ask(SENTENCE), parts(None, student, Full()))
    with pytest.raises(BackendError, match="the disk is full"):
        await batched([ask(SENTENCE)], parts(None, student, Full()))
    assert student.calls == []


async def test_a_stream_that_ends_without_a_reason_is_a_failure():
    class Silent(ScriptedEngine):
        async def stream(self, call: Call):
            for _ in ():
                yield

    answer = await streamed(ask(SENTENCE), parts(None, Silent("", name="edge")))
    assert "the engine 'edge' ended its stream without a reason" in str(answer.errors[0])


async def test_prompts_that_cannot_be_read_to_the_end_stop_the_run_with_their_own_error():
    def prompts():
        yield ask("one")
        raise GktError("the rest is missing")

    with pytest.raises(GktError, match="the rest is missing"):
        await batched(prompts(), parts(None, EchoEngine()))


async def test_seconds_an_engine_did_not_measure_are_measured_around_a_single_call():
    student = ScriptedEngine(Script("Yes.", usage=Usage(1, 0, 1)))
    made = parts(None, student)
    for answer in (await streamed(ask("a"), made), (await batched([ask("a")], made))["a"]):
        assert answer.usage["student"].seconds is not None


@pytest.mark.parametrize("whole", [False, True])
async def test_a_call_that_was_cut_off_has_its_seconds_so_that_own_hardware_has_a_cost(whole):
    book = Book()
    made = parts(None, ScriptedEngine(Script("", fails_after=0)), book)
    async with aclosing(run_request(ask("fails"), made, whole=whole)) as pieces:
        assert isinstance(await anext(pieces), FailChoice)
    hanging = ScriptedEngine(Script("", hangs_after=0))
    task = asyncio.create_task(anext(run_request(ask("hangs"), parts(None, hanging, book), whole=whole)))
    await until(lambda: hanging.calls)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    failed, cancelled = book.closings
    assert (failed.status, cancelled.status) == ("failed", "cancelled")
    assert failed.usage.seconds is not None
    assert cancelled.usage.seconds is not None
    assert cancelled.usage.estimated


def test_batch_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="teacher_batch must be at least 1, got 0"):
        BatchOptions(teacher_batch=0)


async def test_text_that_came_while_nobody_read_is_one_piece():
    student = ScriptedEngine(SENTENCE, chunks=by_characters)
    pieces = run_request(ask(SENTENCE), parts(None, student))
    first = await anext(pieces)
    await until(lambda: student.finished)
    rest = [piece async for piece in pieces]
    assert first == Emit(0, "t", "student")
    assert rest == [Emit(0, SENTENCE[1:], "student"), Finish(0, "stop")]


@pytest.mark.parametrize("whole", [False, True])
async def test_a_request_that_nobody_reads_along_asks_for_whole_answers_and_is_the_same(whole):
    book = Book()
    teacher, student = ScriptedEngine(SENTENCE, name="cloud"), EchoEngine(name="edge")
    made = parts(teacher, student, book)
    exchange = Exchange(ask(SENTENCE, n=2), made)
    pieces = [piece async for piece in run_exchange(exchange, made, whole=whole)]
    assert [choice.text for choice in exchange.answer.choices] == [SENTENCE, SENTENCE]
    assert exchange.answer.guidance == "the cat sat"
    assert exchange.answer.guidance_tokens == 4
    assert (teacher.batches, student.batches) == (([1], [1, 1]) if whole else ([], []))
    assert book.nothing_is_open()
    assert isinstance(pieces[-1], Finish)


async def test_closing_a_request_for_a_whole_answer_cancels_its_calls():
    book, student = Book(), ScriptedEngine(Script("", hangs_after=0))
    made = parts(None, student, book)
    task = asyncio.create_task(anext(run_request(ask(SENTENCE), made, whole=True)))
    await until(lambda: student.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(student.cancelled) == 1
    assert book.statuses() == [("student", "cancelled")]
