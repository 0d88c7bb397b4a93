"""Template markers, tool calls and reasoning spans: handed over whole, or not at all.

A student that is given half a tool call, or an open reasoning span that only the teacher's template knows, continues
something that it never would have begun. So guidance ends before the first span that is open, and before anything at
its end that may still become a marker.
"""

from __future__ import annotations

import re

from gkt_plugins.guidance.stops import held_from

__all__ = ["closed_markup"]

_SPANS: dict[str, str | None] = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
    "<tool_call>": "</tool_call>",
    "<tool_calls>": "</tool_calls>",
    "<function_call>": "</function_call>",
    "<function=": "</function>",
    "<|tool_calls_section_begin|>": "<|tool_calls_section_end|>",
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁end｜>",
    "[TOOL_CALLS]": None,
    "<|python_tag|>": None,
}
"""What opens a span, and what closes it; None: the span goes on to the end of the answer."""

_TURNS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>", "</s>")
"""Markers that stand alone and are not written ``<|name|>``."""

_OPENING = re.compile("|".join(map(re.escape, _SPANS)))
_LITERALS = (*_SPANS, *(close for close in _SPANS.values() if close), *_TURNS, "<|", "<｜")
_FIRSTS = re.compile(f"[{re.escape(''.join({literal[0] for literal in _LITERALS}))}]")
_HALF_MARKER = re.compile(r"<[|｜][^|｜<>\s]{0,64}[|｜]?\Z")


def closed_markup(text: str) -> int:
    """Length of the longest prefix of ``text`` that leaves no span open and ends inside no marker.

    Never shrinks as ``text`` grows.
    """
    if not _FIRSTS.search(text):  # nearly always
        return len(text)
    start = 0
    while opening := _OPENING.search(text, start):
        close = _SPANS[opening.group()]
        end = text.find(close, opening.end()) if close else -1
        if close is None or end < 0:
            return opening.start()
        start = end + len(close)
    half = _HALF_MARKER.search(text, start)
    held = start + held_from(text[start:], _LITERALS)
    return min(half.start(), held) if half else held
