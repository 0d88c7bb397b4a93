"""Teachers that are not there when a server starts."""

from __future__ import annotations

import asyncio
import logging

from gkt_plugins.errors import EngineError
from gkt_plugins.gateway.teachers import Teachers
from gkt_plugins.testing.engines import ScriptedEngine


class Absent(ScriptedEngine):
    """One that comes after it was looked for ``looks`` times."""

    def __init__(self, looks: int) -> None:
        super().__init__("text", name="cloud")
        self.left = looks
        self.found = asyncio.Event()

    async def reach(self) -> None:
        if self.left:
            self.left -= 1
            raise EngineError("it cannot be reached")
        self.found.set()


async def test_a_teacher_that_is_not_there_is_said_once_and_so_is_that_it_came(caplog):
    caplog.set_level(logging.INFO)
    teacher, teachers = Absent(3), Teachers(every_s=0)
    async with teachers.watched([teacher, teacher]):
        await asyncio.sleep(0)
        assert teachers.missing == {"cloud": "it cannot be reached"}
        await asyncio.wait_for(teacher.found.wait(), 5)
        await asyncio.sleep(0)
    assert teachers.missing == {}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "'cloud' is not there yet" in caplog.text
    assert "'cloud' is there now" in caplog.text


async def test_a_teacher_that_never_comes_keeps_nobody_from_leaving(caplog):
    teachers = Teachers(every_s=0)
    async with teachers.watched([Absent(10**9)]):
        await asyncio.sleep(0)
    assert teachers.missing


async def test_a_teacher_that_cannot_be_looked_for_is_taken_to_be_there():
    teachers = Teachers()
    async with teachers.watched([ScriptedEngine("text")]):
        await asyncio.sleep(0)
        assert teachers.missing == {}
