"""Turns of phrase that every message about an unknown name shares."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

__all__ = ["by_nearness", "suggestion"]


def by_nearness(name: str, known: Iterable[str]) -> list[str]:
    """``known``, most similar to ``name`` first; a key of an inner table is compared by its last part."""

    def distance(candidate: str) -> tuple[float, str]:
        return (-SequenceMatcher(None, name.lower(), candidate.rpartition(".")[2].lower()).ratio(), candidate)

    return sorted(set(known), key=distance)


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to write instead of ``name``: the nearest known name, or all of them where none resembles it."""
    names = by_nearness(name, known)
    if not names:
        return "none is known here"
    last = names[0].rpartition(".")[2]
    if get_close_matches(name.lower(), [last.lower()], cutoff=0.6):
        return f"did you mean {names[0]!r}?"
    return f"known, nearest first: {', '.join(names)}"
