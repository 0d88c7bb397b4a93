"""How much guidance a prompt gets, and where the teacher's text is cut.

Cutting policies answer one question, how much of the text is certain, and may look at nothing else. The machine adds
what holds for every policy, third parties' included: whole characters, closed markup, stop strings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gkt_plugins.contracts import Prompt
from gkt_plugins.guidance.graphemes import is_boundary

__all__ = ["FixedLength", "RawCut", "SentenceCut", "WordCut"]


@dataclass(frozen=True, slots=True)
class FixedLength:
    """The same budget for every prompt, as in the paper."""

    tokens: int
    """At least 0."""

    def guidance_tokens(self, prompt: Prompt) -> int:
        return self.tokens


class RawCut:
    """Everything: the seam may fall inside a word. What would be half a character is still held back."""

    def releasable(self, text: str, *, finished: bool) -> int:
        return len(text)


_SPACES = re.compile(r"\s+")
_NO_BREAK = re.compile(r"[\u00a0\u2007\u202f]*")

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff]"
)
"""Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han and full-width forms: words are not separated by spaces."""


class WordCut:
    """Up to the last word that is certain to be whole, without the space after it: the student writes its own.

    A word is certain once white space follows it. In scripts without spaces every character is a word.
    """

    def releasable(self, text: str, *, finished: bool) -> int:
        spaced = _last_spaced(text)
        return max(spaced, _last_unspaced(text, spaced))


def _last_spaced(text: str) -> int:
    """Start of the last white space that ends a word, or 0."""
    end = len(text)
    while end > 0:
        if not text[end - 1].isspace():
            end -= 1
            continue
        start = len(text[:end].rstrip())
        if not _NO_BREAK.fullmatch(text, start, end) and is_boundary(text, start):
            return start
        end = start
    return 0


def _last_unspaced(text: str, start: int) -> int:
    """Last boundary after ``start`` beside a character of a script without spaces, or ``start``."""
    for index in range(len(text) - 1, start, -1):
        beside = _UNSPACED.match(text[index - 1]) or _UNSPACED.match(text[index])
        if beside and not text[index - 1].isspace() and is_boundary(text, index):
            return index
    return start


_SENTENCE_END = re.compile(
    r"""[.!?…؟۔।॥]+["'”’»)\]]*(?=[^\S\u00a0\u2007\u202f])"""  # the space matters: "3." may become "3.14"
    r"""|[。！？｡]+[」』”’）】〉》]*(?=[^。！？｡」』”’）】〉》])"""
    r"""|(?<=\S)(?=\s*\n)"""
)
_ENUMERATOR = re.compile(r"(?:\A|\n)\s*\(?\w{1,3}\.\Z")


class SentenceCut:
    """Up to the last sentence that has ended: by ``.!?…`` before white space, by ``。！？``, or by a line break.

    When the whole guidance holds no such end, the last whole word: it has been paid for.
    """

    def releasable(self, text: str, *, finished: bool) -> int:
        ends = (match.end() for match in _SENTENCE_END.finditer(text))
        last = max((end for end in ends if self._ends_sentence(text, end)), default=0)
        if not last and finished:
            return WordCut().releasable(text, finished=True)
        return last

    @staticmethod
    def _ends_sentence(text: str, end: int) -> bool:
        if not is_boundary(text, end):
            return False
        line_ends = "\n" in text[end : len(text) - len(text[end:].lstrip())]
        return line_ends or not _ENUMERATOR.search(text[:end])
