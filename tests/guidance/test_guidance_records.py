"""When records are written: before a call goes out, while the next one begins, and always before the answer ends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from gkt_plugins.contracts import Engine, Prompt, Sampling, UsageRecord
from gkt_plugins.errors import BackendError
from gkt_plugins.guidance.batch import run_batch
from gkt_plugins.guidance.cleanup import to_its_end
from gkt_plugins.guidance.events import Emit, Finish, Request, Rules
from gkt_plugins.guidance.exchange import Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import Piece, run_request
from gkt_plugins.testing.accounts import Book
from gkt_plugins.testing.engines import EchoEngine, Script, ScriptedEngine, until

SENTENCE = "the cat sat on the mat and slept until noon"
ASKED = Request(Prompt(text=SENTENCE), Sampling(max_tokens=50), request_id="r")


def parts(teacher: Engine, student: Engine, book: Book) -> Parts:
    return Parts(Rules(FixedLength(4), WordCut()), student, teacher, book, "default")


async def read_into(seen: list[Piece], made: Parts) -> None:
    async for piece in run_request(ASKED, made):
        seen.append(piece)  # noqa: PERF401 - one by one, for whoever looks meanwhile


class SlowBook(Book):
    """A ledger whose closings wait until they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.let_through = asyncio.Event()

    async def closed(self, record: UsageRecord) -> UsageRecord:
        await self.let_through.wait()
        return await super().closed(record)


async def test_the_student_begins_while_the_teacher_s_record_is_written_and_the_answer_ends_after_it():
    book, student = SlowBook(), EchoEngine(name="edge")
    seen: list[Piece] = []
    task = asyncio.create_task(read_into(seen, parts(ScriptedEngine(SENTENCE), student, book)))
    await until(lambda: student.finished)
    for _ in range(20):
        await asyncio.sleep(0)
    assert "".join(piece.text for piece in seen if isinstance(piece, Emit)) == SENTENCE
    assert not any(isinstance(piece, Finish) for piece in seen)
    assert book.closings == []
    book.let_through.set()
    await task
    assert isinstance(seen[-1], Finish)
    assert book.statuses() == [("teacher", "final"), ("student", "final")]


async def test_a_reader_who_goes_away_while_a_record_is_written_takes_none_back():
    book, student = SlowBook(), EchoEngine(name="edge")
    task = asyncio.create_task(read_into([], parts(ScriptedEngine(SENTENCE), student, book)))
    await until(lambda: student.finished)
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    book.let_through.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(record.role for record in book.closings) == ["student", "teacher"]
    assert book.nothing_is_open()


@pytest.mark.parametrize("role", ["teacher", "student"])
async def test_a_record_that_cannot_be_written_fails_the_answer_before_its_end(role):
    class Full(Book):
        async def closed(self, record: UsageRecord) -> UsageRecord:
            if record.role == role:
                raise BackendError("the disk is full")
            return await super().closed(record)

    seen: list[Piece] = []
    with pytest.raises(BackendError, match="the disk is full"):
        await read_into(seen, parts(ScriptedEngine(SENTENCE), EchoEngine(), Full()))
    assert not any(isinstance(piece, Finish) for piece in seen)
    with pytest.raises(BackendError, match="the disk is full"):
        async with aclosing(run_batch([ASKED], parts(ScriptedEngine(SENTENCE), EchoEngine(), Full()))) as answers:
            await anext(answers)


async def test_a_reader_who_leaves_and_is_cancelled_while_leaving_takes_no_record_along():
    book, student = SlowBook(), ScriptedEngine(Script(SENTENCE, hangs_after=7), name="edge")
    pieces = run_request(replace(ASKED, guidance_tokens=0), parts(ScriptedEngine(SENTENCE), student, book))
    await anext(pieces)
    leaving = asyncio.create_task(pieces.aclose())
    await until(lambda: student.cancelled)
    for _ in range(3):
        leaving.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
    assert not leaving.done()
    book.let_through.set()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert book.statuses() == [("student", "cancelled")]


async def test_what_has_to_be_done_is_done_and_its_error_is_raised_unless_there_was_a_cancellation():
    async def fail() -> None:
        await asyncio.sleep(0)
        raise BackendError("the disk is full")

    with pytest.raises(BackendError, match="the disk is full"):
        await to_its_end(fail())
    task = asyncio.create_task(to_its_end(fail()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_ledger_with_a_bug_fails_the_request_and_leaves_nobody_waiting():
    class Buggy(Book):
        async def opened(self, record: UsageRecord) -> None:
            raise KeyError("bug")

    made = parts(ScriptedEngine(SENTENCE), EchoEngine(), Buggy())
    with pytest.raises(KeyError, match="bug"):
        await read_into([], made)
    with pytest.raises(KeyError, match="bug"):
        async with aclosing(run_batch([ASKED], made)) as answers:
            await anext(answers)
