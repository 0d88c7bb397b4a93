"""The guidance cache, through both drivers: asked once, billed once, and never in the way."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace

import pytest

from gkt_plugins.contracts import GUIDANCE_CACHE, Call, Engine, Prompt, Sampling
from gkt_plugins.errors import BackendError, EngineError
from gkt_plugins.guidance.answers import Answer
from gkt_plugins.guidance.attempts import Attempts
from gkt_plugins.guidance.batch import run_batch
from gkt_plugins.guidance.cache import GuidanceCache
from gkt_plugins.guidance.events import TEACHER, Request, Rules
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import run_exchange
from gkt_plugins.testing.accounts import Book
from gkt_plugins.testing.engines import EchoEngine, Script, ScriptedEngine, until
from gkt_plugins.testing.stores import MemoryStore

SENTENCE = "the cat sat on the mat and slept until noon"
ASKED = Request(Prompt(text=SENTENCE), Sampling(max_tokens=50), request_id="r")


def parts(teacher: Engine, cache: GuidanceCache, book: Book | None = None, student: Engine | None = None) -> Parts:
    rules = Rules(FixedLength(4), WordCut(), cutting_name="word")
    once = Attempts(attempts=1, breaker_failures=100)
    return Parts(rules, student or EchoEngine(name="edge"), teacher, book, "default", cache, once)


async def streamed(request: Request, made: Parts) -> Answer:
    exchange = Exchange(request, made)
    async with aclosing(run_exchange(exchange, made)) as pieces:
        async for _ in pieces:
            pass
    return exchange.answer


async def batched(request: Request, made: Parts) -> Answer:
    async with aclosing(run_batch([request], made)) as answers:
        [answer] = [answer async for answer in answers]
    return answer


drivers = pytest.mark.parametrize("driver", [streamed, batched])


@drivers
async def test_the_same_prompt_is_asked_once_and_its_answer_stays_the_same(driver):
    teacher, book = ScriptedEngine(SENTENCE, name="cloud", model="large"), Book()
    made = parts(teacher, GuidanceCache(MemoryStore()), book)
    first, second = [await driver(replace(ASKED, request_id=name), made) for name in ("1", "2")]
    assert len(teacher.calls) == 1
    assert (first.cached, second.cached) == (False, True)
    assert first.choices == second.choices
    assert first.guidance == second.guidance == "the cat sat"
    assert first.guidance_tokens == second.guidance_tokens == 4


@drivers
async def test_cached_guidance_is_on_record_with_its_tokens_and_costs_nothing(driver):
    book = Book()
    made = parts(ScriptedEngine(SENTENCE, name="cloud", model="large"), GuidanceCache(MemoryStore()), book)
    asked = [await driver(replace(ASKED, request_id=name), made) for name in ("1", "2")]
    paid, cached = (next(record for record in answer.records if record.role == "teacher") for answer in asked)
    assert (paid.cost_nano, paid.price_source) == (7, None)
    assert (cached.cost_nano, cached.price_source) == (0, GUIDANCE_CACHE)
    assert (cached.engine, cached.model, cached.status, cached.attempt) == ("cloud", "large", "final", 0)
    assert cached.usage == replace(paid.usage, seconds=0.0)
    assert book.nothing_is_open()
    assert sum(what == "opened" and record.role == "teacher" for what, record in book.events) == 1


@drivers
async def test_an_answer_that_the_teacher_finished_comes_whole_from_the_cache(driver):
    teacher, student = ScriptedEngine("On the mat.", name="cloud"), EchoEngine()
    made = parts(teacher, GuidanceCache(MemoryStore()), student=student)
    assert [(await driver(ASKED, made)).text for _ in range(2)] == ["On the mat."] * 2
    assert (len(teacher.calls), student.calls) == (1, [])


@drivers
async def test_sampled_requests_without_a_seed_are_drawn_anew(driver):
    teacher = ScriptedEngine(SENTENCE)
    made = parts(teacher, GuidanceCache(MemoryStore()))
    sampled = replace(ASKED, sampling=Sampling(max_tokens=50, temperature=0.8))
    assert not any([(await driver(sampled, made)).cached for _ in range(2)])
    assert len(teacher.calls) == 2


@drivers
async def test_another_amount_of_guidance_is_another_entry(driver):
    teacher = ScriptedEngine(SENTENCE)
    made = parts(teacher, GuidanceCache(MemoryStore()))
    shorter = replace(ASKED, guidance_tokens=3)
    assert [(await driver(request, made)).guidance for request in (ASKED, shorter, ASKED, shorter)] == [
        "the cat sat",
        "the cat",
        "the cat sat",
        "the cat",
    ]
    assert len(teacher.calls) == 2


@drivers
async def test_failures_are_not_kept(driver):
    scripts = iter([Script(SENTENCE, fails_after=0), Script(SENTENCE)])
    made = parts(ScriptedEngine(lambda call: next(scripts), name="cloud"), GuidanceCache(MemoryStore()))
    assert [(await driver(ASKED, made)).guidance for _ in range(2)] == ["", "the cat sat"]


async def test_a_stream_that_broke_is_not_kept():
    scripts = iter([Script(SENTENCE, fails_after=9), Script(SENTENCE)])
    made = parts(ScriptedEngine(lambda call: next(scripts), name="cloud"), GuidanceCache(MemoryStore()))
    assert [(await streamed(ASKED, made)).guidance for _ in range(2)] == ["the cat", "the cat sat"]


async def test_identical_requests_that_come_together_ask_the_teacher_once_and_one_of_them_pays():
    teacher, book = ScriptedEngine(SENTENCE), Book()
    made = parts(teacher, GuidanceCache(MemoryStore()), book)
    requests = [replace(ASKED, request_id=str(i)) for i in range(10)]
    answers = await asyncio.gather(*(streamed(request, made) for request in requests[:5]))
    async with aclosing(run_batch(requests[5:], made)) as others:
        answers += [answer async for answer in others]
    assert len(teacher.calls) == 1
    assert {answer.text for answer in answers} == {SENTENCE}
    assert sorted(answer.cached for answer in answers) == [False] + [True] * 9
    costs = [record.cost_nano for answer in answers for record in answer.records if record.role == "teacher"]
    assert sorted(cost for cost in costs if cost is not None) == [0] * 9 + [7]


async def test_a_batch_of_identical_rows_asks_the_teacher_once():
    teacher = ScriptedEngine(SENTENCE)
    made = parts(teacher, GuidanceCache(MemoryStore()), Book())
    requests = [replace(ASKED, request_id=str(i)) for i in range(100)]
    async with aclosing(run_batch(requests, made)) as answers:
        assert {answer.text async for answer in answers} == {SENTENCE}
    assert len(teacher.calls) == 1


class Held:
    """A teacher whose first call hangs after its first words."""

    def __init__(self, first: Script) -> None:
        self.engine = ScriptedEngine(self._script, name="cloud")
        self._first: Script | None = first

    def _script(self, call: Call) -> Script:
        first, self._first = self._first, None
        return first or Script(SENTENCE)

    async def leader_and_followers(self, made: Parts, followers: int = 3) -> list[asyncio.Task[Answer]]:
        """The first task leads; the others wait for it."""
        tasks = [asyncio.create_task(streamed(replace(ASKED, request_id=str(i)), made)) for i in range(1 + followers)]
        await until(lambda: self.engine.calls)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(self.engine.calls) == 1
        assert not any(task.done() for task in tasks)
        return tasks


async def test_when_the_leader_s_client_goes_away_a_follower_asks_for_the_others():
    held, book = Held(Script(SENTENCE, hangs_after=7)), Book()
    leader, *followers = await held.leader_and_followers(parts(held.engine, GuidanceCache(MemoryStore()), book))
    leader.cancel()
    answers = await asyncio.gather(*followers)
    assert {answer.text for answer in answers} == {SENTENCE}
    assert len(held.engine.calls) == 2
    assert sorted(answer.cached for answer in answers) == [False, True, True]
    assert book.nothing_is_open()


async def test_when_the_leader_s_teacher_fails_every_follower_asks_for_itself():
    release = asyncio.Event()

    class Failing(ScriptedEngine):
        async def stream(self, call: Call):
            self.calls.append(call)
            if len(self.calls) == 1:
                await release.wait()
                raise EngineError("cloud broke")
            async for delta in EchoEngine().stream(call):
                yield delta

    held = Held(Script(""))
    held.engine = Failing("", name="cloud")
    tasks = await held.leader_and_followers(parts(held.engine, GuidanceCache(MemoryStore()), Book()))
    release.set()
    leader, *followers = await asyncio.gather(*tasks)
    assert leader.choices[0].notes[0].startswith("degraded: ")
    assert [answer.guidance for answer in followers] == ["the cat sat"] * 3
    assert [answer.cached for answer in followers] == [False] * 3
    assert len(held.engine.calls) == 4


async def test_followers_of_a_request_whose_teacher_is_being_left_alone_are_not_kept_waiting():
    teacher = ScriptedEngine(SENTENCE, name="cloud")
    tries = Attempts(breaker_failures=1)
    tries.breaker("cloud").failed()
    made = replace(parts(teacher, GuidanceCache(MemoryStore()), Book()), attempts=tries)
    requests = [replace(ASKED, request_id=str(i)) for i in range(4)]
    answers = await asyncio.gather(*(streamed(request, made) for request in requests))
    assert [answer.text for answer in answers] == [SENTENCE] * 4
    assert teacher.calls == []


async def test_followers_do_not_wait_for_a_reader_who_does_not_read():
    teacher = ScriptedEngine(SENTENCE)
    made = parts(teacher, GuidanceCache(MemoryStore()), Book())
    idle = run_exchange(Exchange(replace(ASKED, request_id="idle"), made), made)
    await anext(idle)  # the first text, and then nothing is read any more
    assert (await streamed(ASKED, made)).cached
    assert len(teacher.calls) == 1
    await idle.aclose()


async def test_a_follower_that_goes_away_disturbs_neither_the_leader_nor_the_others():
    held = Held(Script(SENTENCE, hangs_after=7))
    leader, quitter, *others = await held.leader_and_followers(parts(held.engine, GuidanceCache(MemoryStore())))
    quitter.cancel()
    await asyncio.gather(quitter, return_exceptions=True)
    assert not leader.done()
    leader.cancel()
    assert [(await task).text for task in others] == [SENTENCE] * 2


async def test_a_batch_that_is_closed_lets_the_followers_of_its_rows_go_on():
    held, cache = Held(Script(SENTENCE, hangs_after=0)), GuidanceCache(MemoryStore())
    made = parts(held.engine, cache, Book())
    run = run_batch([replace(ASKED, request_id="row")], made)
    reader = asyncio.create_task(anext(run))
    await until(lambda: held.engine.calls)
    follower = asyncio.create_task(streamed(ASKED, made))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not follower.done()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await run.aclose()
    assert (await follower).text == SENTENCE


async def test_a_ledger_that_cannot_be_written_leaves_no_follower_waiting():
    class Full(Book):
        async def opened(self, record):
            await asyncio.sleep(0)
            raise BackendError("the disk is full")

    made = parts(ScriptedEngine(SENTENCE), GuidanceCache(MemoryStore()), Full())
    tasks = [streamed(replace(ASKED, request_id=str(i)), made) for i in range(4)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["the disk is full"] * 4


async def test_the_time_a_follower_waits_for_the_leader_s_teacher_is_the_teacher_s():
    cache = GuidanceCache(MemoryStore())
    made = parts(ScriptedEngine(SENTENCE), cache)
    exchanges = [Exchange(replace(ASKED, request_id=str(i)), made) for i in range(2)]

    async def run(exchange: Exchange) -> None:
        async for _ in run_exchange(exchange, made):
            pass

    await asyncio.gather(*map(run, exchanges))
    assert [TEACHER in exchange.timings for exchange in exchanges] == [True, True]
    late = Exchange(replace(ASKED, request_id="late"), made)
    await run(late)
    assert TEACHER not in late.timings


@drivers
async def test_a_store_that_cannot_be_reached_costs_one_warning_and_no_request(driver, caplog):
    store = MemoryStore()
    store.fails = True
    cache = GuidanceCache(store, where="redis://cache.example")
    made = parts(ScriptedEngine(SENTENCE), cache)
    with caplog.at_level(logging.WARNING):
        answers = [await driver(ASKED, made) for _ in range(5)]
    assert [answer.text for answer in answers] == [SENTENCE] * 5
    assert [record.getMessage() for record in caplog.records] == [
        "the guidance cache at redis://cache.example cannot be used, so nothing is cached: nobody listens"
    ]
    assert store.asked == 1  # then it is left alone for a while
    await cache.aclose()


async def test_a_store_that_does_not_answer_costs_its_time_out_once_and_no_request(caplog):
    store = MemoryStore()
    store.hangs = True
    made = parts(ScriptedEngine(SENTENCE), GuidanceCache(store, read_timeout_s=0.01))
    assert [(await streamed(ASKED, made)).text for _ in range(3)] == [SENTENCE] * 3
    assert store.asked == 1
    assert "cannot be used, so nothing is cached: TimeoutError" in caplog.text


async def test_an_entry_that_is_no_guidance_is_replaced():
    store = MemoryStore()
    cache = GuidanceCache(store)
    teacher = ScriptedEngine(SENTENCE)
    made = parts(teacher, cache)
    await streamed(ASKED, made)
    await cache.aclose()
    [name] = store.values
    for broken in (b"", b"[]", b"\xff", b'{"text": "the"}', b'{"text": 5, "made_at": "noon"}'):
        store.values[name] = broken
        assert (await streamed(ASKED, made)).text == SENTENCE
        await cache.aclose()
        assert store.values[name] != broken
    assert len(teacher.calls) == 6


async def test_guidance_that_is_too_old_is_asked_for_anew():
    now = 1_000.0
    teacher = ScriptedEngine(SENTENCE)
    cache = GuidanceCache(MemoryStore(), max_age_s=60, clock=lambda: now)
    made = parts(teacher, cache)
    for at, calls in ((1_000.0, 1), (1_060.0, 1), (1_061.0, 2), (1_100.0, 2)):
        now = at
        await streamed(ASKED, made)
        await cache.aclose()
        assert len(teacher.calls) == calls


async def test_closing_writes_what_waits_and_closes_the_store():
    store = MemoryStore()
    cache = GuidanceCache(store)
    await streamed(ASKED, parts(ScriptedEngine(SENTENCE), cache))
    await cache.aclose()
    assert len(store.values) == 1
    assert store.closed


async def test_checking_a_store_says_what_is_wrong_in_one_sentence():
    store = MemoryStore()
    await GuidanceCache(store).check()
    store.fails = True
    with pytest.raises(BackendError) as raised:
        await GuidanceCache(store, where="redis://cache.example").check()
    assert str(raised.value) == "the guidance cache at redis://cache.example cannot be used: nobody listens"
