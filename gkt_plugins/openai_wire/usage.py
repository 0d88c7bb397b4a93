"""``usage`` of OpenAI's API, read: counts that are no counts are unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkt_plugins.contracts import Usage

__all__ = ["read_usage"]


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


def _count(table: Any, key: str) -> int | None:
    count = table.get(key) if isinstance(table, Mapping) else None
    return count if type(count) is int and count >= 0 else None
