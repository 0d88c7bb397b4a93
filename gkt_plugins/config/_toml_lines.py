"""On which line each key of a TOML text stands. The standard parser does not tell."""

from __future__ import annotations

import re
import tomllib

from gkt_plugins._problems import KeyPath

__all__ = ["key_lines"]

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SIMPLE_KEY = re.compile(r"""[ \t]*([A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')[ \t]*""")
_STRING = re.compile(r'''"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?'{3,5}|"(?:[^"\\]|\\.)*"|'[^']*\'''', re.DOTALL)
_SCALAR = re.compile(r"[^,\]}#\r\n]+")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Every table, key and array element of ``text`` → the line where it stands, from 1.

    A table stands at its header, or else at its first key.

    :param text: valid TOML, as :mod:`tomllib` has already found.
    """
    return _Scanner(text).scan()


class _Scanner:
    """Walks over valid TOML once. It knows where things begin and end, not what they mean."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines: dict[KeyPath, int] = {}
        self._elements: dict[KeyPath, int] = {}  # arrays of tables: how many so far

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_SPACE)
        while self._at < len(self._text):
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)
            self._skip(_SPACE)
        return self._lines

    def _header(self) -> KeyPath:
        is_array = self._text.startswith("[[", self._at)
        line = self._line()
        self._at += 2 if is_array else 1
        *parents, last = self._key()
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        for part in parents:
            path = (*path, part)
            self._lines.setdefault(path, line)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        path = (*path, last)
        if is_array:
            self._lines.setdefault(path, line)
            self._elements[path] = self._elements.get(path, 0) + 1
            path = (*path, self._elements[path] - 1)
        self._lines[path] = line  # a header is where a table stands, even after its inner tables
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self._lines.setdefault(path, line)
        self._at += 1  # "="
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip(_SPACE)
        opening = self._text[self._at]
        if opening in "[{":
            self._at += 1
            self._skip(_SPACE)
            index = 0
            while self._text[self._at] not in "]}":
                if opening == "{":
                    self._pair(path)
                else:
                    self._lines[(*path, index)] = self._line()
                    self._value((*path, index))
                    index += 1
                self._skip(_SPACE)
                if self._text[self._at] == ",":
                    self._at += 1
                    self._skip(_SPACE)
            self._at += 1
        else:
            self._skip(_STRING if opening in "\"'" else _SCALAR)

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            match = _SIMPLE_KEY.match(self._text, self._at)
            assert match is not None, "tomllib accepted this text"
            written = match.group(1)
            parts.append(tomllib.loads(f"k = {written}")["k"] if written[0] in "\"'" else written)
            self._at = match.end()
            if not self._text.startswith(".", self._at):
                return parts
            self._at += 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        assert match is not None, "tomllib accepted this text"
        self._at = match.end()

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1
