"""The guidance cache in an SQLite file: shared by processes, and held up by none of them."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from gkt_plugins.config import load_config
from gkt_plugins.contracts import Prompt
from gkt_plugins.errors import BackendError, ConfigError
from gkt_plugins.guidance.cache import GuidanceCache, open_cache
from gkt_plugins.guidance.cache_sqlite import SqliteStore
from gkt_plugins.guidance.events import Request, Rules
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import run_exchange
from gkt_plugins.testing.engines import EchoEngine, ScriptedEngine

SENTENCE = "the cat sat on the mat"


def configured(tmp_path: Path, text: str = "[cache]\n", env: dict[str, str] | None = None) -> GuidanceCache:
    section = load_config(text=text).cache
    assert section is not None
    return open_cache(section, tmp_path, env or {})


async def ask(cache: GuidanceCache, teacher: ScriptedEngine) -> bool:
    """Whether the guidance came from the cache."""
    parts = Parts(Rules(FixedLength(4), WordCut()), EchoEngine(name="edge"), teacher, cache=cache)
    exchange = Exchange(Request(Prompt(text=SENTENCE)), parts)
    async for _ in run_exchange(exchange, parts):
        pass
    assert exchange.answer.text == SENTENCE
    return exchange.answer.cached


async def test_guidance_outlives_the_process_that_asked_for_it(tmp_path):
    teacher = ScriptedEngine(SENTENCE)
    for cached in (False, True):
        cache = configured(tmp_path)
        assert await ask(cache, teacher) is cached
        await cache.aclose()
        await cache.aclose()
    assert (tmp_path / "guidance.db").is_file()


async def test_what_one_process_writes_another_that_is_running_reads(tmp_path):
    one, other = configured(tmp_path), configured(tmp_path)
    await one.check()
    await other.check()
    assert not await ask(one, ScriptedEngine(SENTENCE))
    await one.aclose()
    assert await ask(other, ScriptedEngine(""))
    await other.aclose()


async def test_many_writers_on_one_file_lose_nothing(tmp_path):
    stores = [SqliteStore(tmp_path / "guidance.db") for _ in range(4)]
    await asyncio.gather(*(store.put({f"{s} {i}": b"x"}, None) for i in range(25) for s, store in enumerate(stores)))
    assert [await stores[0].get(f"{s} {i}") for i in range(25) for s in range(4)] == [b"x"] * 100
    for store in stores:
        await store.aclose()


async def test_entries_that_are_too_old_leave_the_file(tmp_path):
    path = tmp_path / "guidance.db"
    store = SqliteStore(path)
    await store.put({"old": b"x"}, None)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE guidance SET made_at = made_at - 100")
    await store.put({"new": b"y"}, 60)
    assert (await store.get("old"), await store.get("new")) == (None, b"y")
    await store.aclose()


async def test_a_file_that_is_no_database_costs_one_warning_and_no_request(tmp_path, caplog):
    (tmp_path / "guidance.db").write_bytes(b"not a database" * 100)
    cache = configured(tmp_path)
    assert [await ask(cache, ScriptedEngine(SENTENCE)) for _ in range(3)] == [False] * 3
    await cache.aclose()
    [warning] = caplog.records
    assert "guidance.db cannot be used, so nothing is cached: file is not a database" in warning.getMessage()


async def test_a_folder_that_is_not_there_is_named_by_a_check(tmp_path):
    cache = configured(tmp_path, '[cache]\nurl = "sqlite:///nowhere/guidance.db"\n')
    with pytest.raises(BackendError, match=r"nowhere/guidance\.db cannot be used: unable to open database file"):
        await cache.check()
    await cache.aclose()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "guidance.db", "postgresql://host/guidance", "redis:"]
)
def test_a_url_that_names_no_store_is_refused_in_one_sentence(tmp_path, url):
    with pytest.raises(ConfigError, match=r"^cache\.url must be sqlite:///FILE or redis://HOST, got one that begins"):
        configured(tmp_path, f'[cache]\nurl = "{url}"\n')


def test_a_url_may_come_from_the_environment_so_that_no_password_is_in_the_file(tmp_path):
    text = '[cache]\nurl_env = "GUIDANCE_URL"\n'
    configured(tmp_path, text, {"GUIDANCE_URL": "sqlite:///guidance.db"})
    with pytest.raises(ConfigError, match=r"cache\.url_env names GUIDANCE_URL, and that environment variable is not"):
        configured(tmp_path, text)
    with pytest.raises(ConfigError, match=r"has both url and url_env .*; keep one of them"):
        configured(tmp_path, text + 'url = "sqlite:///guidance.db"\n')


async def test_a_process_killed_while_its_teacher_writes_locks_nobody_out(tmp_path):
    script = Path(__file__).with_name("hanging_leader.py")
    leader = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert leader.stdout is not None
    assert await leader.stdout.readline() == b"asking\n"
    leader.send_signal(signal.SIGKILL)
    await leader.wait()
    cache, teacher = configured(tmp_path), ScriptedEngine(SENTENCE)
    assert [await ask(cache, teacher) for _ in range(2)] == [False, True]
    assert len(teacher.calls) == 1
    await cache.aclose()
