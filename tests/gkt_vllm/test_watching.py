"""A file that is edited while a server runs."""

from __future__ import annotations

import asyncio

from gkt_vllm.frozen import freeze
from gkt_vllm.watching import ConfigWatch


async def test_an_edited_file_is_said_once_and_so_is_that_it_is_as_before(tmp_path, caplog):
    file, told = tmp_path / "gkt.toml", []
    file.write_text("one = 1\n")
    watch = ConfigWatch(freeze(file), told.append)
    await watch.look()
    assert not caplog.records
    file.write_text("one = 2\n")
    await watch.look()
    await watch.look()
    assert watch.changed
    assert len(caplog.records) == 1
    assert "has changed; this server goes on with what it was started with" in caplog.text
    file.unlink()
    await watch.look()
    assert "cannot be read any more" in caplog.text
    file.write_text("one = 1\n")
    await watch.look()
    assert not watch.changed
    assert "is again what this server was started with" in caplog.text
    assert told == [False, True, True, True, False]


async def test_the_file_is_looked_at_again_and_again(tmp_path):
    file, changed = tmp_path / "gkt.toml", asyncio.Event()
    file.write_text("one = 1\n")
    watch = ConfigWatch(freeze(file), lambda found: changed.set() if found else None, every_s=0.001)
    async with watch.watched():
        file.write_text("one = 2\n")
        await asyncio.wait_for(changed.wait(), 10)
