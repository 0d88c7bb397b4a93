"""Stop strings, found in text while it is decoded token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["StopMatcher"]

_CONTEXT = 6
"""Prompt tokens decoded before the answer, so that a leading space of its first token is not lost."""
_PATIENCE = 8
"""Tokens to wait for the rest of a character; a model that writes broken bytes must not make the window grow."""


class StopMatcher:
    """Watches one row for its stop strings. The cost of a token does not grow with the answer."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops))
        self._ids = list(prompt[-_CONTEXT:])
        self._read = len(self._ids)
        self._tail = ""

    def feed(self, token: int) -> str | None:
        """Take the next token; return the stop string that it completes, the one that begins first."""
        self._ids.append(token)
        before = self._decode(self._ids[: self._read])
        text = self._decode(self._ids)
        if text.endswith("\ufffd") and len(self._ids) - self._read < _PATIENCE:
            return None  # a character is not complete yet
        seen = self._tail + text[len(before) :]
        self._ids = self._ids[-_CONTEXT:]
        self._read = len(self._ids)
        found = [(seen.find(stop), stop) for stop in self._stops if stop in seen]
        if found:
            return min(found)[1]
        self._tail = seen[-(self._longest - 1) :] if self._longest > 1 else ""
        return None

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
