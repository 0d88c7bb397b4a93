"""What is sent: a call in the words of the OpenAI API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gkt_openai.options import ChatRoute
from gkt_openai.templates import ChatTemplate
from gkt_plugins.contracts import Call, Message

__all__ = ["PATHS", "Asked", "Dialect", "Route", "asked_of", "hinted"]

Route: TypeAlias = Literal["chat", "completions"]

PATHS: Mapping[Route, str] = {"chat": "/chat/completions", "completions": "/completions"}

HINT = "Begin your answer with exactly the following text, then go on from where it ends:\n\n"


@dataclass(slots=True)
class Dialect:
    """What an endpoint calls things; learnt from its refusals."""

    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Of chats."""
    stream_options: bool = True
    """Takes ``stream_options``."""
    running_usage: bool = False
    """Counts tokens in every chunk, when asked to."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, ready to go."""

    route: Route
    body: Mapping[str, Any]
    max_tokens: int
    repeats: str = ""
    """The answer may begin with this although it should not: the prefix, where it was only told."""


def asked_of(
    call: Call,
    *,
    model: str,
    chat_route: ChatRoute,
    template: ChatTemplate | None,
    raw_chats: bool,
    dialect: Dialect,
    stream: bool,
    fixed: Mapping[str, Any],
) -> Asked:
    """The request for ``call``. ``chat_route``: how a chat's answer is continued, where the call has a prefix.

    ``raw_chats``: chats go out as raw prompts in any case. ``fixed``: fields that the operator sets for every request;
    they win.
    """
    prompt, prefix = call.prompt, call.prefix
    body: dict[str, Any] = {"model": model}
    repeats = ""
    route: Route = "chat"
    if prompt.text is not None:
        route = "completions"
        body["prompt"] = prompt.text + prefix
    elif raw_chats or (prefix and chat_route == "completion"):
        assert template is not None
        route = "completions"
        body["prompt"] = template.render(prompt.messages) + prefix
    elif not prefix:
        body["messages"] = _turns(prompt.messages)
    elif chat_route == "hint":
        body["messages"] = hinted(prompt.messages, prefix)
        repeats = prefix
    else:
        body |= continued(_turns(prompt.messages), prefix, chat_route)
    body["max_tokens" if route == "completions" else dialect.tokens_field] = call.sampling.max_tokens
    body |= _sampling(call)
    if stream:
        body["stream"] = True
        if dialect.stream_options:
            options = {"include_usage": True}
            body["stream_options"] = options | {"continuous_usage_stats": True} if dialect.running_usage else options
    body |= fixed
    return Asked(route, body, call.sampling.max_tokens, repeats)


def continued(turns: list[dict[str, Any]], prefix: str, chat_route: ChatRoute) -> dict[str, Any]:
    """The fields of a chat whose answer begins with ``prefix``.

    Sources: vLLM and SGLang for ``continue_final_message``; Mistral and DeepSeek for ``prefix``; Moonshot and Alibaba
    Cloud for ``partial``; llama.cpp's server goes on from a trailing message without being told.
    """
    last: dict[str, Any] = {"role": "assistant", "content": prefix}
    if chat_route in ("prefix", "partial"):
        last[chat_route] = True
    fields: dict[str, Any] = {"messages": [*turns, last]}
    if chat_route == "continue_final_message":
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    return fields


def hinted(messages: tuple[Message, ...], prefix: str) -> list[dict[str, Any]]:
    """The chat with the prefix told in its last user turn: another method, for endpoints that have no better."""
    turns = _turns(messages)
    told = f"{HINT}{prefix}"
    if turns[-1]["role"] == "user":
        turns[-1]["content"] += f"\n\n{told}"
    else:
        turns.append({"role": "user", "content": told})
    return turns


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _sampling(call: Call) -> dict[str, Any]:
    """The options that are not the API's defaults; temperature is always told, for the default is the model's."""
    sampling = call.sampling
    fields: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.top_p != 1.0:
        fields["top_p"] = sampling.top_p
    if sampling.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.min_p:
        fields["min_p"] = sampling.min_p
    if sampling.repetition_penalty != 1.0:
        fields["repetition_penalty"] = sampling.repetition_penalty
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if sampling.extra:
        fields |= sampling.extra
    return fields
