"""How to answer, as a :class:`~gkt_plugins.contracts.Sampling`; and which wishes text from two models cannot grant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gkt_plugins.contracts import Sampling
from gkt_plugins.guidance.events import Feature
from gkt_plugins.openai_wire._fields import flag, integer, number, strings, table
from gkt_plugins.openai_wire.errors import InvalidRequest

__all__ = ["features", "left_out", "sampling"]

_MOST_STOPS = 16

_READ = frozenset(
    {
        *("model", "messages", "prompt", "stream", "stream_options", "n", "gkt"),
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
        *("stop", "seed"),
        # these ask for a feature, or for nothing
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "web_search_options"),
        *("logprobs", "top_logprobs", "prompt_logprobs", "best_of", "echo", "suffix", "logit_bias"),
        *("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"),
        *("modalities", "audio"),
    }
)
"""What is understood here; everything else goes to the engines as it came."""

_FOR_THE_PROVIDER = frozenset(
    {
        *("user", "metadata", "store", "safety_identifier", "service_tier", "prediction"),
        *("prompt_cache_key", "prompt_cache_retention"),
    }
)
"""What tells a provider something, and changes no answer; the engines are others than the client knows."""

_OURS = frozenset({"continue_final_message", "add_generation_prompt"})
"""What continues an answer, which is how guidance itself reaches the student."""

_STRUCTURED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")


def sampling(body: Mapping[str, Any], defaults: Sampling) -> Sampling:
    """:raises InvalidRequest: an option is of the wrong type, or out of its range."""
    return Sampling(
        max_tokens=_max_tokens(body) or defaults.max_tokens,
        temperature=number(body, "temperature", low=0, high=2, default=1.0),
        top_k=max(0, integer(body, "top_k", low=-1) or 0),
        top_p=number(body, "top_p", low=0, high=1, default=1.0, above_low=True),
        min_p=number(body, "min_p", low=0, high=1, default=0.0),
        repetition_penalty=number(body, "repetition_penalty", low=0, high=10, default=1.0, above_low=True),
        stop=strings(body, "stop", most=_MOST_STOPS),
        seed=integer(body, "seed", low=-(2**63), high=2**63 - 1),
        extra=_extra(body),
    )


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    old = integer(body, "max_tokens", low=1)
    new = integer(body, "max_completion_tokens", low=1)
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            f"max_tokens is {old} and max_completion_tokens is {new}, which mean the same; keep one of them",
            param="max_tokens",
            code="invalid_value",
        )
    return old if new is None else new


def _extra(body: Mapping[str, Any]) -> dict[str, Any]:
    """Options for the engines; penalties of 0 are none."""
    extra = {
        key: value
        for key, value in body.items()
        if value is not None and key not in _READ and key not in _FOR_THE_PROVIDER
    }
    if not extra:
        return extra
    for key in _OURS:
        if key in extra:
            raise InvalidRequest(
                f"{key} is how guidance reaches the student, so a request cannot set it; leave it out",
                param=key,
                code="invalid_value",
            )
    for key in ("frequency_penalty", "presence_penalty"):
        if key in extra:
            extra[key] = number(extra, key, low=-2, high=2, default=0.0)
            if not extra[key]:
                del extra[key]
    return extra


def left_out(body: Mapping[str, Any]) -> list[str]:
    """Notes about what reaches no engine."""
    names = sorted(key for key in _FOR_THE_PROVIDER if body.get(key))
    return [f"left out: {', '.join(names)}, which is between a client and one provider"] if names else []


def features(route: Literal["chat", "completions"], body: Mapping[str, Any]) -> set[Feature]:
    """What the options ask for besides text. :raises InvalidRequest: one of them is of the wrong type."""
    found: set[Feature] = set()
    wants_logprobs = flag(body, "logprobs") if route == "chat" else integer(body, "logprobs") is not None
    best_of = integer(body, "best_of", low=1, high=128)
    if (
        wants_logprobs
        or integer(body, "top_logprobs")
        or body.get("prompt_logprobs") is not None
        or (best_of is not None and best_of > (integer(body, "n", low=1) or 1))
    ):
        found.add("logprobs")
    if body.get("tools") or body.get("functions") or body.get("web_search_options") is not None:
        found.add("tools")
    if table(body, "response_format").get("type", "text") != "text" or any(body.get(key) for key in _STRUCTURED):
        found.add("structured_output")
    if flag(body, "echo"):
        found.add("echo")
    if body.get("suffix"):
        found.add("suffix")
    if body.get("modalities") not in (None, [], ["text"]) or body.get("audio"):
        found.add("content_parts")
    if table(body, "logit_bias"):
        found.add("token_ids")
    return found
