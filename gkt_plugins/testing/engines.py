"""Engines that do as they are told: no model, no network, no waiting. For tests of drivers, adapters and plugins.

A *token* here is a word with the white space before it, so budgets and counts mean something::

    teacher = ScriptedEngine("The cat sat on the mat.")
    student = ScriptedEngine(lambda call: " and slept." if call.prefix else "A dog barked.")
    broken = ScriptedEngine(Script("The cat sat", fails_after=7))
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

from gkt_plugins.contracts import Call, Capabilities, Completion, Delta, FinishReason, Usage
from gkt_plugins.errors import EngineError

__all__ = ["EchoEngine", "Script", "ScriptedEngine", "by_characters", "by_words", "in_one_piece", "until"]

_WORD = re.compile(r"\s*\S+|\s+\Z")


def by_words(text: str) -> list[str]:
    """The tokens of ``text``: words, each with the white space before it."""
    return _WORD.findall(text)


def by_characters(text: str) -> list[str]:
    """One code point at a time, which also splits emoji and accents."""
    return list(text)


def in_one_piece(text: str) -> list[str]:
    """All at once."""
    return [text] if text else []


async def until(condition: Callable[[], object]) -> None:
    """Let the other tasks run until ``condition`` holds; they must be able to bring it about without waiting."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Script:
    """What an engine does with one call."""

    text: str
    finish_reason: FinishReason | None = None
    """None: ``length`` where the budget cuts the text, else ``stop``."""
    fails_after: int | None = None
    """Raise after this many characters; 0: before any."""
    hangs_after: int | None = None
    """After this many characters wait until the call is cancelled."""
    error: EngineError | None = None
    """What to raise; by default a sentence that names the engine."""
    usage: Usage | None = None
    """What to report; by default counted in words."""
    notes: tuple[str, ...] = ()


class ScriptedEngine:
    """An engine whose answers are written down."""

    def __init__(
        self,
        script: str | Script | Callable[[Call], str | Script],
        *,
        name: str = "scripted",
        model: str = "scripted-model",
        capabilities: Capabilities | None = None,
        chunks: Callable[[str], Iterable[str]] = by_words,
        honours_stop: bool = True,
    ) -> None:
        """``script``: one for all calls, or a function of the call. ``chunks``: how text is streamed.

        ``honours_stop``: whether a stop string in the engine's own text ends it, as real engines do.
        """
        self.name = name
        self.model = model
        self.capabilities = capabilities or Capabilities(batch=True, tokenizer=True)
        self.calls: list[Call] = []
        """Every call, in order of arrival."""
        self.batches: list[int] = []
        """Size of each batch."""
        self.cancelled: list[Call] = []
        """Calls that were ended from outside."""
        self.finished: list[Call] = []
        """Streams that came to their end."""
        self.closed = False
        self._script = script
        self._chunks = chunks
        self._honours_stop = honours_stop

    async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
        self.batches.append(len(calls))
        self.calls.extend(calls)
        return list(await asyncio.gather(*map(self._complete, calls)))

    async def stream(self, call: Call) -> AsyncIterator[Delta]:
        self.calls.append(call)
        script = self._script_of(call)
        text, reason = self._written(script, call)
        sent = 0
        try:
            for chunk in self._chunks(text):
                limits = [limit for limit in (script.fails_after, script.hangs_after) if limit is not None]
                chunk = chunk[: max(0, min(limits) - sent)] if limits else chunk
                if chunk:
                    yield Delta(chunk)
                sent += len(chunk)
                await asyncio.sleep(0)  # let whoever reads react, as a real stream does
                if sent in limits:
                    break
            await self._misbehave(script, call)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.append(call)
            raise
        self.finished.append(call)
        yield Delta("", reason, script.usage or self._usage(call, text), script.notes)

    def count_tokens(self, text: str) -> int:
        """How many words."""
        return len(by_words(text))

    async def aclose(self) -> None:
        self.closed = True

    def _script_of(self, call: Call) -> Script:
        script = self._script(call) if callable(self._script) else self._script
        return Script(script) if isinstance(script, str) else script

    def _written(self, script: Script, call: Call) -> tuple[str, FinishReason]:
        """The text within the call's budget and before its stop strings, and why it ends there."""
        words = by_words(script.text)
        text = "".join(words[: call.sampling.max_tokens])
        stops = [text.find(stop) for stop in call.sampling.stop if stop in text] if self._honours_stop else []
        if stops:
            return text[: min(stops)], "stop"
        return text, script.finish_reason or ("length" if len(words) > call.sampling.max_tokens else "stop")

    async def _complete(self, call: Call) -> Completion | EngineError:
        script = self._script_of(call)
        text, reason = self._written(script, call)
        try:
            await self._misbehave(script, call)
        except EngineError as exc:
            return exc
        except asyncio.CancelledError:
            self.cancelled.append(call)
            raise
        return Completion(text, reason, script.usage or self._usage(call, text), script.notes)

    async def _misbehave(self, script: Script, call: Call) -> None:
        if script.fails_after is not None:
            raise script.error or EngineError(f"{self.name} failed as its script says")
        if script.hangs_after is not None:
            await asyncio.Event().wait()

    def _usage(self, call: Call, text: str) -> Usage:
        asked = call.prompt.text or " ".join(message.content for message in call.prompt.messages)
        return Usage(
            prompt_tokens=self.count_tokens(asked) + self.count_tokens(call.prefix),
            completion_tokens=self.count_tokens(text),
            seconds=0.0,
        )


def _echo(call: Call) -> str:
    asked = call.prompt.text if call.prompt.text is not None else call.prompt.messages[-1].content
    return asked.removeprefix(call.prefix)


class EchoEngine(ScriptedEngine):
    """Answers with the question, going on from the prefix: guided or not, the whole answer is the question."""

    def __init__(self, *, name: str = "echo", capabilities: Capabilities | None = None) -> None:
        super().__init__(_echo, name=name, model=f"{name}-model", capabilities=capabilities)
