"""Asks an endpoint what it can do, with about a dozen tiny requests.

What is asked for is not taken on trust: an endpoint may accept a flag and ignore it. So continuing a given beginning
is judged by the tokens of the prompt: an answer that is continued is not closed, and no new one is opened after it, so
that the prompt is shorter than without the flag. Only where no tokens are told, the text decides.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Literal

from gkt_openai.calls import PATHS, Route, continued
from gkt_openai.endpoint import Endpoint
from gkt_openai.errors import EndpointError
from gkt_openai.events import EventReader, EventTooLongError
from gkt_openai.findings import Findings, StreamUsage
from gkt_openai.options import ChatRoute

__all__ = ["probe"]

_QUESTION = "Name the first eight letters of the alphabet."
_BEGUN = "The first eight letters are A, B, C, D, E, an"
"""Ends within a word: who goes on from it writes "d"; who begins anew does not."""
_FLAGGED: tuple[ChatRoute, ...] = ("continue_final_message", "prefix", "partial")
_TOP = (20, 5, 1)


async def probe(endpoint: Endpoint, model: str, fixed: Mapping[str, Any]) -> Findings:
    """What the endpoint can do with ``model``; ``fixed``: fields of every request.

    :raises EndpointError: it cannot be reached, refuses the key, does not know the model, or is too busy to be asked.
    """
    return await _Probe(endpoint, model, fixed).run()


class _Probe:
    def __init__(self, endpoint: Endpoint, model: str, fixed: Mapping[str, Any]) -> None:
        self._endpoint = endpoint
        self._model = model
        self._fixed = fixed
        self._tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
        self._spent = 0
        self._notes: list[str] = []
        self._slots = asyncio.Semaphore(4)  # a probe is no burst

    async def run(self) -> Findings:
        chat, refused = await self._first_chat()
        raw = await self._ask("completions", {"prompt": _QUESTION}, 1)
        if chat is None and raw is None:
            assert refused is not None
            raise refused
        wrapped = raw is not None and chat is not None and _prompt_tokens(raw) == _prompt_tokens(chat) is not None
        if wrapped:
            self._notes.append("/completions puts raw prompts into a chat template, so it cannot continue them")
        chat_route, streamed, chat_top, completion_top, echoes, listed = await asyncio.gather(
            self._chat_route(chat), self._stream("chat" if chat else "completions"),
            self._chat_logprobs() if chat else _none(), self._completion_logprobs() if raw else _none(),
            self._prompt_logprobs() if raw else _none(), self._listed(),
        )  # fmt: skip
        return Findings(
            chat=chat is not None,
            completions=raw is not None and not wrapped,
            chat_route=chat_route,
            stream_usage=streamed[0],
            running_usage=streamed[1],
            chat_logprobs=chat_top,
            completion_logprobs=completion_top,
            prompt_logprobs=bool(echoes),
            models=listed,
            tokens_field=self._tokens_field,
            tokens_spent=self._spent,
            notes=tuple(self._notes),
        )

    # --------------------------------------------------------------------------------------------- questions

    async def _first_chat(self) -> tuple[dict[str, Any] | None, EndpointError | None]:
        """A plain chat, and which field bounds its tokens; the refusal, where there is none."""
        body = {"messages": [_user(_QUESTION)]}
        try:
            return await self._asked("chat", body, 1), None
        except EndpointError as exc:
            if exc.status in (None, 401, 403, 429):
                raise
            refused = exc
        self._tokens_field = "max_completion_tokens"
        if (found := await self._ask("chat", body, 1)) is not None:
            return found, None
        self._tokens_field = "max_tokens"
        return None, refused

    async def _chat_route(self, chat: dict[str, Any] | None) -> ChatRoute:
        if chat is None:
            return "hint"
        turns = [_user(_QUESTION)]
        plain, *flagged = await asyncio.gather(
            self._ask("chat", continued(turns, _BEGUN, "trailing"), 3),
            *(self._ask("chat", continued(turns, _BEGUN, route), 3) for route in _FLAGGED),
        )
        for route, found in zip(_FLAGGED, flagged, strict=True):
            if found is not None and _continues(found, plain):
                return route
        return "trailing" if plain is not None and await self._trails(chat, plain) else "hint"

    async def _trails(self, chat: dict[str, Any], plain: dict[str, Any]) -> bool:
        """Is a last message of the assistant continued without a flag? Then it costs what its text does."""
        told = await self._ask("chat", {"messages": [_user(f"{_QUESTION} {_BEGUN}")]}, 1)
        counts = [_prompt_tokens(found) for found in (chat, plain, told or {})]
        if None in counts:
            return _goes_on(plain)
        asked, with_answer, with_text = (count or 0 for count in counts)
        return with_answer <= with_text and with_answer > asked

    async def _stream(self, route: Route) -> tuple[StreamUsage, bool]:
        """How streams tell usage, and whether each chunk can."""
        body: dict[str, Any] = {"messages": [_user(_QUESTION)]} if route == "chat" else {"prompt": _QUESTION}
        options = {"include_usage": True, "continuous_usage_stats": True}
        counts = await self._stream_counts(route, {**body, "stream_options": options})
        if counts is None:
            counts = await self._stream_counts(route, {**body, "stream_options": {"include_usage": True}})
        if counts:
            return "asked", len(set(counts)) > 2
        counts = await self._stream_counts(route, body)
        if counts is None:
            self._notes.append("it does not stream")
        return ("unasked" if counts else "none"), False

    async def _chat_logprobs(self) -> int:
        for top in _TOP:
            body = {"messages": [_user(_QUESTION)], "logprobs": True, "top_logprobs": top}
            if found := await self._ask("chat", body, 1):
                try:
                    return len(found["choices"][0]["logprobs"]["content"][0]["top_logprobs"])
                except (LookupError, TypeError):
                    return 0
        return 0

    async def _completion_logprobs(self) -> int:
        for top in _TOP:
            if found := await self._ask("completions", {"prompt": _QUESTION, "logprobs": top}, 1):
                try:
                    return min(len(found["choices"][0]["logprobs"]["top_logprobs"][0]), top)
                except (LookupError, TypeError):
                    return 0
        return 0

    async def _prompt_logprobs(self) -> int:
        found = await self._ask("completions", {"prompt": _QUESTION, "echo": True, "logprobs": 1}, 1)
        try:
            choice = (found or {})["choices"][0]
            return int(choice["text"].startswith(_QUESTION) and len(choice["logprobs"]["token_logprobs"]) > 2)
        except (LookupError, TypeError, AttributeError):
            return 0

    async def _listed(self) -> bool:
        try:
            status, body = await self._endpoint.json("/models")
            return status == 200 and any(model.get("id") == self._model for model in json.loads(body)["data"])
        except (EndpointError, ValueError, LookupError, TypeError, AttributeError):
            return False

    # --------------------------------------------------------------------------------------------------- HTTP

    async def _ask(self, route: Route, body: Mapping[str, Any], tokens: int) -> dict[str, Any] | None:
        """The response; None: the endpoint does not do this."""
        try:
            return await self._asked(route, body, tokens)
        except EndpointError as exc:
            if exc.status in (None, 429):
                raise
            return None

    async def _asked(self, route: Route, body: Mapping[str, Any], tokens: int) -> dict[str, Any]:
        async with self._slots, self._endpoint.opened(PATHS[route], self._whole(route, body, tokens)) as response:
            if response.status_code != 200:
                raise await self._endpoint.refused(response)
            data = await self._endpoint.read(response)
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("choices"), list) or not found["choices"]:
            raise EndpointError(
                f"the endpoint of engine {self._endpoint.name!r} must speak the OpenAI API, and sent something else; "
                f"check base_url",
                code="upstream_corrupt",
                status=200,
            )
        usage = found.get("usage")
        self._spent += (usage.get("total_tokens") or 0) if isinstance(usage, dict) else 0
        return found

    async def _stream_counts(self, route: Route, body: Mapping[str, Any]) -> list[int] | None:
        """The completion tokens that a stream of a few tokens told, in order; None: it was refused."""
        events, counts = EventReader(), []
        whole = self._whole(route, {**body, "stream": True}, 4)
        async with self._slots, self._endpoint.opened(PATHS[route], whole) as response:
            if response.status_code != 200:
                refused = await self._endpoint.refused(response)
                if refused.status == 429:
                    raise refused
                return None
            frames: list[bytes] = []
            try:
                async for data in response.stream:  # type: ignore[union-attr]
                    frames += [event for event, _ in events.feed(data)]
            except EventTooLongError:
                return []
        for frame in frames:
            try:
                usage = json.loads(frame)["usage"]
                counts.append(int(usage["completion_tokens"]))
            except (ValueError, LookupError, TypeError):
                continue
        self._spent += counts[-1] if counts else 0
        return counts

    def _whole(self, route: Route, body: Mapping[str, Any], tokens: int) -> dict[str, Any]:
        bound = self._tokens_field if route == "chat" else "max_tokens"
        return {"model": self._model, **body, bound: tokens, "temperature": 0, **self._fixed}


async def _none() -> int:
    return 0


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _prompt_tokens(found: Mapping[str, Any]) -> int | None:
    usage = found.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    return count if isinstance(count, int) and count > 0 else None


def _continues(flagged: Mapping[str, Any], plain: Mapping[str, Any] | None) -> bool:
    """Did the flag have the beginning continued?

    An endpoint that takes a last message of the assistant with the flag only, has understood the flag.
    """
    if plain is None:
        return True
    with_flag, without = _prompt_tokens(flagged), _prompt_tokens(plain)
    if with_flag is None or without is None:
        return _goes_on(flagged) and not _goes_on(plain)
    return with_flag < without


def _goes_on(found: Mapping[str, Any]) -> bool:
    try:
        return str(found["choices"][0]["message"]["content"]).startswith("d")
    except (LookupError, TypeError):
        return False
