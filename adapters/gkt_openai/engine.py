"""An OpenAI-compatible endpoint as an engine, for teacher or student."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx2

from gkt_openai.calls import PATHS, Asked, asked_of
from gkt_openai.endpoint import Endpoint
from gkt_openai.knowledge import Knowledge
from gkt_openai.options import OpenAIOptions
from gkt_openai.reading import ChunkReader, StreamReader, read_object, read_whole, truncated
from gkt_openai.repeats import RepeatFilter
from gkt_openai.templates import ChatTemplate
from gkt_openai.usage import BusyTime, settled_usage
from gkt_plugins.contracts import BuildContext, Call, Capabilities, Completion, Delta, Finding, Usage
from gkt_plugins.errors import EngineError
from gkt_plugins.openai_wire.usage import read_drafts

__all__ = ["OpenAIEngine"]

_HINTED = "degraded: hint, the student's engine cannot continue a given beginning, so it was told the guidance"
_DRAIN_S = 0.1
"""How long the end of a finished stream may take, so that its connection can be used again."""


class OpenAIEngine:
    """An :class:`~gkt_plugins.contracts.Engine` and a :class:`~gkt_plugins.contracts.Forwarder`."""

    def __init__(self, options: OpenAIOptions, context: BuildContext) -> None:
        """Nothing is sent yet. :raises ConfigError: the key is not there, or ``chat_template`` is none."""
        self._options = options
        self._endpoint = Endpoint(options, context)
        self._name = self._endpoint.name
        self._template = ChatTemplate.load(options.chat_template, context.base_dir) if options.chat_template else None
        self._knowledge = Knowledge(options, context, self._endpoint)
        self._slots = asyncio.Semaphore(options.concurrency)
        self._busy = BusyTime()

    @property
    def name(self) -> str:
        return self._name

    @property
    def model(self) -> str:
        return self._options.model

    @property
    def capabilities(self) -> Capabilities:
        """As far as they are known; :meth:`prepare` makes sure."""
        return self._knowledge.capabilities

    async def prepare(self) -> None:
        """Find out how answers are continued, where that is not known yet.

        :raises EndpointError: the endpoint cannot be asked.
        """
        await self._knowledge.chat_route()

    async def reach(self) -> None:
        """See :meth:`gkt_plugins.contracts.Reachable.reach`. Asks for the list of models, which costs nothing; an
        endpoint without one has answered too."""
        async with self._endpoint.opened("/models", None) as response:
            if response.status_code in (401, 403, 502, 503, 504):
                raise await self._endpoint.refused(response)

    async def examine(self, *, refresh: bool = False) -> Sequence[Finding]:
        """See :meth:`gkt_plugins.contracts.Examinable.examine`."""
        return self._knowledge.findings(await self._knowledge.ask(refresh=refresh))

    async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
        """Answer ``calls``, ``batch_concurrency`` at a time."""
        if len(calls) == 1:
            return [await self._complete(calls[0])]
        together = asyncio.Semaphore(self._options.batch_concurrency)

        async def one(call: Call) -> Completion | EngineError:
            async with together:
                return await self._complete(call)

        tasks = [asyncio.ensure_future(one(call)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def stream(self, call: Call) -> AsyncGenerator[Delta, None]:
        """Answer ``call`` in pieces: one for each packet that brings text."""
        asked = await self._asked(call, stream=True)
        reader = StreamReader(asked.route, self._name)
        repeats = RepeatFilter(asked.repeats)
        texts: list[str] = []
        begun = self._busy.begin()
        seconds = 0.0
        try:
            async with self._sent(asked) as response:
                parts = response.stream.__aiter__()  # type: ignore[union-attr]
                async for data in parts:
                    if text := repeats.feed(reader.feed(data)):
                        texts.append(text)
                        yield Delta(text, usage=self._running(call, reader, text, asked))
                    if reader.done:
                        await _drained(parts)
                        break
                rest = repeats.feed(reader.end()) + repeats.end()
        finally:
            seconds = self._busy.end(begun)
        texts.append(rest)
        text = "".join(texts)
        usage, notes = settled_usage(
            call, text, reader.usage, max_tokens=asked.max_tokens, seconds=seconds, drafts=reader.drafts
        )
        assert reader.reason is not None
        yield Delta(rest, reader.reason, usage, notes + self._said(text, reader.reasoned) + _hinted(asked))

    async def forward(
        self, route: Literal["chat", "completions"], body: Mapping[str, Any]
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """See :meth:`gkt_plugins.contracts.Forwarder.forward`."""
        asked = Asked(route, {**body, **self._options.body, "model": self._options.model}, 0)
        async with self._sent(asked) as response:
            if not body.get("stream"):
                yield read_object(await self._endpoint.read(response), self._name)
                return
            reader = ChunkReader(self._name)
            ended = False
            parts = response.stream.__aiter__()  # type: ignore[union-attr]
            async for data in parts:
                for chunk in reader.feed(data):
                    ended = ended or _ends(chunk)
                    yield chunk
                if reader.done:
                    await _drained(parts)
                    return
            for chunk in reader.end():
                ended = ended or _ends(chunk)
                yield chunk
            if not ended and not reader.done:
                raise truncated(self._name)

    async def aclose(self) -> None:
        await self._knowledge.aclose()
        await self._endpoint.aclose()

    # ------------------------------------------------------------------------------------------------ within

    async def _asked(self, call: Call, *, stream: bool) -> Asked:
        route = await self._knowledge.chat_route() if call.prefix and call.prompt.text is None else "hint"
        return asked_of(
            call,
            model=self._options.model,
            chat_route=route,
            template=self._template,
            raw_chats=self._knowledge.raw_chats,
            dialect=self._knowledge.dialect,
            stream=stream,
            fixed=self._options.body,
        )

    @asynccontextmanager
    async def _sent(self, asked: Asked) -> AsyncIterator[httpx2.Response]:
        """The response to ``asked``, whose status is 200. A refusal that is about words is answered in other words."""
        async with self._slots:
            refused = None
            async with self._endpoint.opened(PATHS[asked.route], asked.body) as response:
                if response.status_code == 200:
                    yield response
                    return
                refused = await self._endpoint.refused(response)
            again = self._knowledge.relearnt(asked, refused)
            if again is None:
                raise refused
            async with self._endpoint.opened(PATHS[again.route], again.body) as response:
                if response.status_code != 200:
                    raise await self._endpoint.refused(response)
                yield response

    async def _complete(self, call: Call) -> Completion | EngineError:
        begun = self._busy.begin()
        seconds = 0.0
        try:
            asked = await self._asked(call, stream=False)
            async with self._sent(asked) as response:
                body = await self._endpoint.read(response)
            found = read_object(body, self._name)
            text, reason, reasoned = read_whole(found, asked.route, self._name)
            repeats = RepeatFilter(asked.repeats)
            text = repeats.feed(text) + repeats.end()
        except EngineError as exc:
            return exc
        finally:
            seconds = self._busy.end(begun)
        reported = found.get("usage")
        usage, notes = settled_usage(
            call,
            text,
            reported if isinstance(reported, dict) else None,
            max_tokens=asked.max_tokens,
            seconds=seconds,
            drafts=read_drafts(found),
        )
        return Completion(text, reason, usage, notes + self._said(text, reasoned) + _hinted(asked))

    def _running(self, call: Call, reader: StreamReader, text: str, asked: Asked) -> Usage | None:
        """What was used so far, where the endpoint counts in every chunk: a call that is cancelled has that."""
        if reader.usage is None or not self._knowledge.dialect.running_usage:
            return None
        usage, _ = settled_usage(call, text, reader.usage, max_tokens=asked.max_tokens, seconds=None)
        return None if usage.estimated else usage

    def _said(self, text: str, reasoned: bool) -> tuple[str, ...]:
        if text or not reasoned:
            return ()
        return (
            f"the engine {self._name!r} spent its tokens on hidden reasoning and wrote no answer; switch that off in "
            f"engines.{self._name}.body",
        )


def _hinted(asked: Asked) -> tuple[str, ...]:
    """In the core's own words, so that it is said once, whoever knew it first."""
    return (_HINTED,) if asked.repeats else ()


async def _drained(parts: AsyncIterator[bytes]) -> None:
    """Read to the end of a stream that has said it is done, unless the end is late."""
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for _ in parts:
                pass
    except TimeoutError:
        pass


def _ends(chunk: Mapping[str, Any]) -> bool:
    """Does a choice of this chunk end?"""
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(isinstance(one, dict) and one.get("finish_reason") for one in choices)
