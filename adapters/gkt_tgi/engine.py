"""The engine: raw continuation on TGI's native routes, plain chats on its OpenAI route."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

from gkt_plugins.contracts import (
    BuildContext,
    Call,
    Capabilities,
    Completion,
    Delta,
    Finding,
    FinishReason,
    Message,
    Usage,
)
from gkt_plugins.errors import ConfigError, EngineError
from gkt_plugins.guidance.estimates import estimate_usage
from gkt_plugins.guidance.stops import StopFilter, find_stop
from gkt_tgi.client import TGIClient
from gkt_tgi.failures import EXPECTED, engine_error
from gkt_tgi.findings import findings
from gkt_tgi.options import TGIOptions
from gkt_tgi.parameters import chat_parameters, native_parameters
from gkt_tgi.templates import ChatInputs

__all__ = ["TGIEngine"]


class TGIEngine:
    """Text in, text out, at one text-generation-inference server.

    A raw prompt, and a chat whose answer has a beginning, go to ``/generate`` or ``/generate_stream``: TGI continues
    whatever text it is given, so a chat's template is applied first (``/chat_tokenize``). A chat without a beginning
    goes to ``/v1/chat/completions``, unless it has options that only the native routes know.
    """

    capabilities = Capabilities(prefix="completion", stream_usage=True)

    def __init__(self, options: TGIOptions, context: BuildContext) -> None:
        """``context.resources["transport"]`` lets a test stand in for the network.

        :raises ConfigError: ``api_key_env`` names a variable that is not set.
        """
        self.name = context.name or "tgi"
        self.model = options.model
        key = None if options.api_key_env is None else context.env.get(options.api_key_env)
        if options.api_key_env is not None and not key:
            raise ConfigError(
                f"engines.{self.name}.api_key_env names {options.api_key_env}, and that environment variable is not set"
            )
        self._client = TGIClient(options, key, context.resources.get("transport"))
        self._chats = ChatInputs(self._client)
        self._concurrency = options.concurrency
        self._room = asyncio.Semaphore(options.concurrency)

    async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
        """Answer a batch; the server puts it together by itself."""
        return list(await asyncio.gather(*map(self._complete, calls)))

    async def stream(self, call: Call) -> AsyncIterator[Delta]:
        """Answer one call in pieces. Closing the iterator closes the connection, which cancels the call."""
        async with self._room:
            try:
                chat = await self._chat(call)
                pieces = self._stream_native(call) if chat is None else self._stream_chat(call, chat)
                async with aclosing(pieces):
                    async for delta in pieces:
                        yield delta
            except EXPECTED as exc:
                raise engine_error(self.name, exc) from exc

    async def forward(
        self, route: Literal["chat", "completions"], body: Mapping[str, Any]
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Tools, structured output and log-probabilities, by TGI's own chat route.

        :raises EngineError: ``completions``, where TGI has nothing that guidance has not; or the call failed.
        """
        if route != "chat":
            raise EngineError(
                f"the engine {self.name!r} gives no log-probabilities and no echo for raw prompts; ask for a chat",
                refused=True,
            )
        asked = {**body, "model": self.model}
        if isinstance(stop := asked.get("stop"), str):
            asked["stop"] = [stop]
        if (limit := asked.pop("max_completion_tokens", None)) is not None:
            asked["max_tokens"] = limit
        async with self._room:
            try:
                if not asked.get("stream"):
                    yield await self._client.chat(asked)
                    return
                async with self._client.chat_lines(asked) as lines:
                    async for line in lines:
                        chunk = json.loads(line)
                        if "error" in chunk:
                            said = chunk["error"]
                            raise EngineError(f"the engine {self.name!r} failed while it wrote: {said}; see its log")
                        yield chunk
            except EXPECTED as exc:
                raise engine_error(self.name, exc) from exc

    async def examine(self, *, refresh: bool = False) -> Sequence[Finding]:
        """See :meth:`gkt_plugins.contracts.Examinable.examine`; always asked anew, and no token is spent."""
        try:
            info = await self._client.info()
            templated = await self._client.templated([Message("user", "Hello.")])
            return findings(info, self._concurrency, can_template=templated is not None)
        except EXPECTED as exc:
            raise engine_error(self.name, exc) from exc

    async def aclose(self) -> None:
        """Close the connections. Safe to call twice."""
        await self._client.aclose()

    # -------------------------------------------------------------------------------------------- routes

    async def _chat(self, call: Call) -> dict[str, Any] | None:
        """Parameters for the OpenAI route; None where the call goes to a native one."""
        if call.prompt.text is not None or call.prefix:
            return None
        parameters = chat_parameters(call.sampling, engine=self.name)
        if parameters is None:
            return None
        messages = [{"role": message.role, "content": message.content} for message in call.prompt.messages]
        return {"model": self.model, "messages": messages, **parameters}

    async def _inputs(self, call: Call) -> str:
        if call.prompt.text is not None:
            return call.prompt.text + call.prefix
        return await self._chats.of(call.prompt.messages, engine=self.name) + call.prefix

    # --------------------------------------------------------------------------------------------- whole

    async def _complete(self, call: Call) -> Completion | EngineError:
        async with self._room:
            try:
                chat = await self._chat(call)
                return await (self._native(call) if chat is None else self._chatted(call, chat))
            except EngineError as exc:
                return exc
            except EXPECTED as exc:
                return engine_error(self.name, exc)

    async def _native(self, call: Call) -> Completion:
        inputs = await self._inputs(call)
        parameters = native_parameters(call.sampling, engine=self.name)
        counting = asyncio.create_task(self._client.tokens(inputs))  # /generate does not say how long the prompt was
        try:
            async with self._client.hub() as hub:
                output = await hub.text_generation(
                    inputs, model=self._client.url + "/generate", details=True, **parameters
                )
            assert output.details is not None
            counted = await _counted(counting)
        finally:
            counting.cancel()
        usage = _usage(call, output.generated_text, counted, output.details.generated_tokens)
        return _completion(call, output.generated_text, output.details.finish_reason, usage)

    async def _chatted(self, call: Call, chat: Mapping[str, Any]) -> Completion:
        async with self._client.hub() as hub:
            output = await hub.chat_completion(**chat)
        [choice] = output.choices
        text = choice.message.content or ""
        usage = _usage(call, text, output.usage.prompt_tokens, output.usage.completion_tokens)
        return _completion(call, text, choice.finish_reason, usage)

    # --------------------------------------------------------------------------------------------- pieces

    async def _stream_native(self, call: Call) -> AsyncGenerator[Delta, None]:
        inputs = await self._inputs(call)
        parameters = native_parameters(call.sampling, engine=self.name)
        passing = StopFilter(call.sampling.stop)
        text = ""
        async with self._client.hub() as hub:
            events = await hub.text_generation(
                inputs, model=self._client.url + "/generate_stream", details=True, stream=True, **parameters
            )
            async for event in events:
                piece = "" if event.token.special else event.token.text
                if event.generated_text is not None and event.generated_text.startswith(text + piece):
                    piece = event.generated_text[len(text) :]  # the last event may know of characters that no token had
                text += piece
                if certain := passing.feed(piece):
                    yield Delta(certain)
                if event.details is not None:
                    usage = _usage(call, text, event.details.input_length, event.details.generated_tokens)
                    yield _last(passing, event.details.finish_reason, usage)
                    return
                if passing.stopped:  # by a stop string that the server was not told of
                    yield Delta("", "stop", estimate_usage(call, text))
                    return
        raise EngineError(
            f"the engine {self.name!r} ended its stream without its last event; try again", retryable=True
        )

    async def _stream_chat(self, call: Call, chat: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
        passing = StopFilter(call.sampling.stop)
        reason: str | None = None
        usage: Usage | None = None
        text = ""
        async with self._client.hub() as hub:
            chunks = await hub.chat_completion(**chat, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
            async for chunk in chunks:
                if chunk.usage is not None:
                    usage = _usage(call, text, chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                for choice in chunk.choices:
                    piece = choice.delta.content or ""
                    text += piece
                    if certain := passing.feed(piece):
                        yield Delta(certain)
                    reason = choice.finish_reason or reason
                if passing.stopped and reason is None:
                    yield Delta("", "stop", estimate_usage(call, text))
                    return
        if reason is None:
            raise EngineError(f"the engine {self.name!r} ended its stream without a reason; try again", retryable=True)
        yield _last(passing, reason, usage or estimate_usage(call, text))


async def _counted(counting: asyncio.Task[Any]) -> int | None:
    """Prompt tokens; that they could not be counted is no reason to lose the answer."""
    try:
        tokens = await counting
    except EXPECTED:
        return None
    return None if tokens is None else len(tokens)


def _usage(call: Call, text: str, prompt_tokens: int | None, completion_tokens: int) -> Usage:
    """As reported; a prompt that the server did not count (it then says 0) is estimated."""
    if prompt_tokens:
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    guessed = estimate_usage(call, text)
    return Usage(prompt_tokens=guessed.prompt_tokens, completion_tokens=completion_tokens, estimated=True)


def _completion(call: Call, text: str, reason: str, usage: Usage) -> Completion:
    stop = find_stop(text, call.sampling.stop)  # TGI leaves the stop string in
    return Completion(text if stop is None else text[:stop], _reason(reason, stopped=stop is not None), usage)


def _last(passing: StopFilter, reason: str, usage: Usage) -> Delta:
    return Delta(passing.flush(), _reason(reason, stopped=passing.stopped), usage)


def _reason(reason: str, *, stopped: bool) -> FinishReason:
    return "length" if reason == "length" and not stopped else "stop"
