"""Everything at once: same prompts, failing engines, retries, readers who leave; and nothing is lost or repeated."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import replace
from itertools import count

import pytest

from gkt_plugins.contracts import GUIDANCE_CACHE, Call, Prompt, Sampling
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.answers import Answer
from gkt_plugins.guidance.attempts import Attempts
from gkt_plugins.guidance.batch import run_batch
from gkt_plugins.guidance.cache import GuidanceCache
from gkt_plugins.guidance.events import Request, Rules
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import run_exchange
from gkt_plugins.testing.accounts import Book
from gkt_plugins.testing.engines import Script, ScriptedEngine, by_characters
from gkt_plugins.testing.stores import MemoryStore

PROMPTS = [f"the {animal} sat on the mat and slept until noon" for animal in ("cat", "dog", "owl", "fox")]


class Weather:
    """An engine's mood: mostly it answers with the question, going on from the prefix."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    def __call__(self, call: Call) -> Script:
        text = str(call.prompt.text).removeprefix(call.prefix)
        mood = self._draw.random()
        if mood < 0.6:
            return Script(text)
        error = EngineError("stormy", retryable=self._draw.random() < 0.7, refused=self._draw.random() < 0.5)
        return Script(text, fails_after=0 if mood < 0.85 else self._draw.randrange(1, 12), error=error)


async def nearly_no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


async def stream(request: Request, made: Parts, draw: random.Random) -> Answer | None:
    """The answer; None: the reader left."""
    leaves_after = draw.choice([None, None, 0, 1, 3, 10])
    exchange = Exchange(request, made)
    async with aclosing(run_exchange(exchange, made, whole=draw.random() < 0.3)) as pieces:
        seen = 0
        async for _ in pieces:
            if seen == leaves_after:
                return None
            seen += 1
            for _ in range(draw.randrange(3)):
                await asyncio.sleep(0)
    return exchange.answer


@pytest.mark.parametrize("seed", range(48))
async def test_whatever_happens_texts_are_whole_and_every_call_is_on_record_once(seed):
    draw, book, store = random.Random(seed), Book(), MemoryStore()
    store.fails = seed % 4 == 3
    cache = GuidanceCache(store)
    made = Parts(
        Rules(FixedLength(4), WordCut()),
        ScriptedEngine(Weather(draw), name="edge", chunks=by_characters),
        ScriptedEngine(Weather(draw), name="cloud", chunks=by_characters),
        book,
        cache=cache,
        attempts=Attempts(
            sleep=nearly_no_sleep, breaker_failures=6, breaker_pause_s=3.0, clock=map(float, count()).__next__
        ),
    )
    requests = [
        Request(Prompt(text=draw.choice(PROMPTS)), Sampling(max_tokens=50), draw.choice([1, 1, 3]), request_id=str(i))
        for i in range(120)
    ]
    prompts = {request.request_id: request.prompt.text for request in requests}
    tasks = [asyncio.create_task(stream(request, made, draw)) for request in requests[:80]]
    for task in draw.sample(tasks, 15):
        for _ in range(draw.randrange(30)):
            await asyncio.sleep(0)
        task.cancel()
    async with aclosing(run_batch([replace(request) for request in requests[80:]], made)) as rows:
        answers = [answer async for answer in rows]
    assert len(answers) == 40
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert outcome is None or isinstance(outcome, Answer | asyncio.CancelledError), outcome
        answers += [outcome] if isinstance(outcome, Answer) else []
    await cache.aclose()

    assert sum(not answer.errors for answer in answers) > 20  # a storm that leaves nothing whole shows nothing
    for answer in answers:
        for choice in answer.choices:
            whole = str(prompts[answer.request_id])
            assert choice.text == whole if choice.error is None else whole.startswith(choice.text)
            assert whole.startswith(choice.guidance)
    assert book.nothing_is_open()
    opened = [record for what, record in book.events if what == "opened"]
    cached = [record for record in book.closings if record.price_source == GUIDANCE_CACHE]
    assert len(opened) + len(cached) == len(book.closings)
    assert {record.attempt for record in opened} == {0, 1, 2}
    assert bool(cached) or store.fails
