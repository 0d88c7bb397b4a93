"""Where a text may be cut without splitting what a reader sees as one character.

The rules are those of Unicode's extended grapheme clusters, read cautiously: where the standard library does not carry
the property that a rule needs, no boundary is claimed. So a boundary found here is one for Unicode too, while a few of
Unicode's are not found here, which costs a character of guidance and breaks nothing.

Source: Unicode Standard Annex #29, rules GB3 to GB13.
"""

from __future__ import annotations

import unicodedata

__all__ = ["BROKEN", "is_boundary", "whole_characters"]

_ZWJ = "\u200d"
BROKEN = "\ufffd"
"""What a byte-level tokenizer writes for a character whose bytes are not all there."""
_CANCEL_TAG = "\U000e007f"

_EXTENDING_CATEGORIES = frozenset({"Mn", "Me", "Mc", "Cn"})
"""Marks join what stands before them. Unassigned code points may be marks that this Python does not know yet."""

_PREPENDED = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\U000110bd\U000110cd\U000111c2\U000111c3"
    "\U0001193f\U00011941\U00011a3a\U00011a84\U00011a85\U00011a86\U00011a87\U00011a88\U00011a89\U00011d46\U00011f02"
)
"""Characters that join what follows them, such as the Arabic number sign."""


def is_boundary(text: str, index: int) -> bool:
    """Whether ``text[:index]`` ends with a whole character, given what follows it.

    :param index: in [0, len(text)]; both ends are boundaries.
    """
    if index <= 0 or index >= len(text):
        return True
    before, after = text[index - 1], text[index]
    if before.isascii() and after.isascii():
        return before != "\r" or after != "\n"
    return not (
        _extends(after)
        or before == _ZWJ
        or before in _PREPENDED
        or ("\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff")
        or _one_hangul_syllable(before, after)
        or (_is_regional(after) and _regionals_before(text, index) % 2 == 1)
        or _joined_by_virama(text, index)
    )


def whole_characters(text: str, limit: int) -> int:
    """Largest boundary at or before ``limit`` that text still to come cannot undo.

    The last character of ``text`` never counts: an accent, a skin tone or the other half of a flag may have been the
    next token.
    """
    limit = min(limit, len(text) - 1)
    while limit > 0 and not is_boundary(text, limit):
        limit -= 1
    return max(limit, 0)


def _extends(char: str) -> bool:
    return (
        unicodedata.category(char) in _EXTENDING_CATEGORIES
        or char in "\u200c\u200d\u0e33\u0eb3\uff9e\uff9f"
        or "\U0001f3fb" <= char <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= char <= _CANCEL_TAG  # flags of regions
    )


def _is_regional(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _regionals_before(text: str, index: int) -> int:
    start = index
    while start > 0 and _is_regional(text[start - 1]):
        start -= 1
    return index - start


def _joined_by_virama(text: str, index: int) -> bool:
    """A virama between two consonants of an Indic script makes one conjunct of them."""
    if unicodedata.category(text[index]) != "Lo":
        return False
    while index > 0 and _extends(text[index - 1]):
        index -= 1
        if unicodedata.combining(text[index]) == 9:
            return True
    return False


def _hangul(char: str) -> str:
    if "\u1100" <= char <= "\u115f" or "\ua960" <= char <= "\ua97c":
        return "L"
    if "\u1160" <= char <= "\u11a7" or "\ud7b0" <= char <= "\ud7c6":
        return "V"
    if "\u11a8" <= char <= "\u11ff" or "\ud7cb" <= char <= "\ud7fb":
        return "T"
    if "\uac00" <= char <= "\ud7a3":
        return "LV" if (ord(char) - 0xAC00) % 28 == 0 else "LVT"
    return ""


_HANGUL_FOLLOWS = {"L": ("L", "V", "LV", "LVT"), "V": ("V", "T"), "LV": ("V", "T"), "T": ("T",), "LVT": ("T",)}


def _one_hangul_syllable(before: str, after: str) -> bool:
    return _hangul(after) in _HANGUL_FOLLOWS.get(_hangul(before), ())
