"""``usage`` of OpenAI's API, and what some servers tell of drafts beside it, read: counts that are no counts are
unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkt_plugins.contracts import Usage

__all__ = ["read_drafts", "read_usage"]


def read_usage(value: object) -> Usage | None:
    """What an endpoint reported; None where it reported nothing. What is missing, negative or no integer is None in
    it, and so are cached tokens that are more than the prompt's."""
    if not isinstance(value, Mapping):
        return None
    prompt = _count(value, "prompt_tokens")
    cached = _count(value.get("prompt_tokens_details"), "cached_tokens")
    if cached is not None and (prompt is None or cached > prompt):
        cached = None
    return Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=_count(value, "completion_tokens"))


def read_drafts(response: Mapping[str, Any]) -> tuple[int, int]:
    """Drafted tokens and, of them, accepted ones, that a response, or a chunk of a stream, tells of.

    ``metrics.speculative_decoding`` is where servers with speculation tell it; (0, 0) where there is none, or none that
    can be true.
    """
    metrics = response.get("metrics")
    told = metrics.get("speculative_decoding") if isinstance(metrics, Mapping) else None
    drafted, accepted = _count(told, "num_draft_tokens"), _count(told, "num_accepted_draft_tokens")
    if drafted is None or accepted is None or accepted > drafted:
        return 0, 0
    return drafted, accepted


def _count(table: Any, key: str) -> int | None:
    count = table.get(key) if isinstance(table, Mapping) else None
    return count if type(count) is int and count >= 0 else None
