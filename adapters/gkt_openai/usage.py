"""Tokens and seconds of a call: the endpoint's own counts where they can be true, otherwise an estimate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from gkt_plugins.contracts import Call, Usage
from gkt_plugins.guidance.estimates import estimate_usage

__all__ = ["BusyTime", "settled_usage"]


def settled_usage(
    call: Call,
    text: str,
    reported: Mapping[str, Any] | None,
    *,
    max_tokens: int,
    seconds: float | None,
    drafts: tuple[int, int] = (0, 0),
) -> tuple[Usage, tuple[str, ...]]:
    """Usage of ``call``, which wrote ``text``, and a note where the endpoint's counts cannot be true.

    ``drafts``: drafted and accepted tokens, of an endpoint that tells them.

    A count that is missing, or impossible, is estimated, and the usage marked so: completion tokens are at least 1
    where there is text, and at most ``max_tokens``; prompt tokens are at least 1; cached tokens at most those.
    """
    drafted, accepted = drafts
    prompt = _count(reported, "prompt_tokens")
    completion = _count(reported, "completion_tokens")
    cached = _cached(reported)
    notes: tuple[str, ...] = ()
    if reported is not None and completion is None and "completion_tokens" in reported:
        completion = -1
    true_completion = completion is not None and (1 if text else 0) <= completion <= max_tokens
    true_prompt = prompt is not None and prompt >= 1
    if true_prompt and true_completion:
        if cached is not None and not 0 <= cached <= (prompt or 0):
            cached = None
        return Usage(prompt, cached, completion, drafted, accepted, seconds), notes
    if reported:
        notes = ("usage estimated: the endpoint's own token counts cannot be true",)
    estimate = estimate_usage(call, text)
    return (
        Usage(
            prompt if true_prompt else estimate.prompt_tokens,
            None,
            completion if true_completion else estimate.completion_tokens,
            drafted,
            accepted,
            seconds,
            estimated=True,
        ),
        notes,
    )


def _count(reported: Mapping[str, Any] | None, key: str) -> int | None:
    value = (reported or {}).get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _cached(reported: Mapping[str, Any] | None) -> int | None:
    """Where OpenAI tells it, and where DeepSeek does."""
    details = (reported or {}).get("prompt_tokens_details")
    if isinstance(details, Mapping) and (cached := _count(details, "cached_tokens")) is not None:
        return cached
    return _count(reported, "prompt_cache_hit_tokens")


class BusyTime:
    """Shares wall time among the calls that are under way at once: their seconds add up to the time it was busy."""

    def __init__(self) -> None:
        self._shared = 0.0
        """Seconds that a call has used which was there all the time."""
        self._active = 0
        self._since = 0.0

    def begin(self) -> float:
        """A call begins; what :meth:`end` wants back."""
        self._advance()
        self._active += 1
        return self._shared

    def end(self, begun: float) -> float:
        """It is over: its share, in seconds."""
        self._advance()
        self._active -= 1
        return self._shared - begun

    def _advance(self) -> None:
        now = time.perf_counter()
        if self._active:
            self._shared += (now - self._since) / self._active
        self._since = now
