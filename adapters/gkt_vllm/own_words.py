"""What the student is asked in a guided request: its client's own words and options, as without guidance.

The engines of a pipeline know what all models have in common. A vLLM server knows more, and what a request leaves out
it has from its model: so that what its client said, or did not say, reaches it as it came.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gkt_plugins.openai_wire.requests import Asked

__all__ = ["OwnWords", "apart", "cannot_be_shared", "with_defaults"]

_SHARED = frozenset({"frequency_penalty", "presence_penalty", "reasoning_effort", "verbosity"})
"""Options that a teacher may know; all others that OpenAI's API does not have are vLLM's own."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Their defaults are the model's own."""
_COMPLETION_TOKENS = 16
"""What vLLM writes for a raw prompt at most, where a request does not say."""
_OF_ONE_MODEL = (
    *("use_beam_search", "include_stop_str_in_output", "allowed_token_ids", "bad_words", "documents", "watermarking"),
    *("return_token_ids", "return_token_offsets", "return_prompt_text", "return_assistant_tokens_mask"),
    *("logprob_token_ids", "routed_experts_prompt_start", "prompt_embeds", "mm_payload"),
    *("kv_transfer_params", "ec_transfer_params"),
)
"""Options of vLLM's own that hold for a whole answer, or tell of its tokens."""


@dataclass(frozen=True, slots=True)
class OwnWords:
    """Of one request."""

    said: Mapping[str, Any] = field(default_factory=dict)
    """Options as they came."""
    unsaid: frozenset[str] = frozenset()
    """Options that were left to vLLM."""
    messages: Sequence[Any] = ()
    """The chat as it came; empty for raw prompts."""

    def put(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """``call``, the body of a call to the student, in them."""
        body = {key: value for key, value in call.items() if key not in self.unsaid} | dict(self.said)
        if self.messages:
            body["messages"] = [*self.messages, *call["messages"][len(self.messages) :]]  # then the answer so far
        least = body.get("min_tokens")
        if type(least) is int:
            body["min_tokens"] = min(least, call["max_tokens"])  # of which guidance is a part
        return body


def cannot_be_shared(body: Mapping[str, Any]) -> list[str]:
    """Options of vLLM's own that text from two models cannot honour."""
    options = body.get("stream_options")
    running = isinstance(options, Mapping) and options.get("include_usage") and options.get("continuous_usage_stats")
    return [key for key in _OF_ONE_MODEL if body.get(key)] + (["continuous_usage_stats"] if running else [])


def with_defaults(route: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """``body`` with the one default that vLLM does not have from its model."""
    return {"max_tokens": _COMPLETION_TOKENS, **body} if route == "completions" else body


def apart(asked: Asked, *, fixed: Collection[str], preset: bool) -> tuple[OwnWords, Asked]:
    """The student's own words, and the request without what no teacher knows.

    :param fixed: options that a preset fixes. ``preset``: there is one, which decides what a request does not say.
    """
    extra, body = asked.requests[0].sampling.extra, asked.body
    said = {key: value for key, value in extra.items() if key not in _SHARED}
    shared = {key: value for key, value in extra.items() if key in _SHARED}
    said |= {key: body[key] for key in _SAMPLING if body.get(key) is not None and key not in fixed}
    given = {"max_tokens" if key == "max_completion_tokens" else key for key in body if body[key] is not None}
    unsaid = frozenset() if preset else frozenset({"temperature", "max_tokens"} - given)
    requests = tuple(replace(one, sampling=replace(one.sampling, extra=shared)) for one in asked.requests)
    return OwnWords(said, unsaid, body.get("messages") or ()), replace(asked, requests=requests)
