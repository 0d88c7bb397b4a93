"""The lines of keys, against documents written in every way that TOML knows."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkt_plugins._problems import KeyPath
from gkt_plugins.config._toml_lines import key_lines

KEYS = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,4}", fullmatch=True),
    st.sampled_from(["a.b", "c#d", "e=f", "[g]", 'h"i', "j'k", "ключ", " ", ""]),
)

# Texts that a careless scanner takes for keys, headers, comments or ends of strings.
TRICKY = [
    '"plain"',
    "'lit # eral'",
    r'"quote \" and # hash"',
    "'[table]'",
    '"""\n[table]\nkey = 1 # no comment\n"""',
    "'''\n[[array]]\nkey = 'x'\n'''",
    '"""ends with quotes"""""',
    "'''ends with quotes'''''",
    '""""two quotes first"""',
    r'"""escaped \""" inside"""',
    '""',
    "''",
    '""""""',
    "1979-05-27 07:32:00Z",
    "+1_000.5e-3",
    "true",
]

Style = st.sampled_from(["header", "dotted", "inline"])


class Writer:
    """Writes a document and remembers on which line it put each integer; every integer occurs once."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.integers: dict[int, int] = {}

    def value(self, depth: int, *, one_line: bool) -> str:
        kind = self.draw(st.sampled_from(["int", "int", "tricky", "array", "inline"] if depth else ["int", "tricky"]))
        if kind == "tricky":
            return self.draw(st.sampled_from([text for text in TRICKY if not (one_line and "\n" in text)]))
        if kind == "array":
            return self.array(depth - 1, one_line=one_line)
        if kind == "inline":
            return self.inline(depth - 1)
        number = 1_000_000 + len(self.integers)
        self.integers[number] = 0
        return str(number)

    def array(self, depth: int, *, one_line: bool) -> str:
        gap = " " if one_line else self.draw(st.sampled_from([" ", "\n", " # comment, ]\n\n"]))
        elements = [self.value(depth, one_line=one_line) for _ in range(self.draw(st.integers(0, 3)))]
        return "[" + gap + ("," + gap).join(elements) + gap + "]"

    def inline(self, depth: int) -> str:
        # Strings of several lines may stand inside an inline table, but it may not be broken otherwise.
        pairs = [f"{key} = {self.value(depth, one_line=True)}" for key in self.keys()]
        return "{ " + ", ".join(pairs) + " }"

    def keys(self) -> list[str]:
        return [self.quoted(key) for key in self.draw(st.lists(KEYS, max_size=3, unique=True))]

    def quoted(self, key: str) -> str:
        if key and key.isascii() and key.replace("-", "").replace("_", "").isalnum() and self.draw(st.booleans()):
            return key
        return "'" + key + "'" if "'" not in key else '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def line(self, text: str) -> None:
        self.text += self.draw(st.sampled_from(["", "\n", "# [comment]\n", "  "]))
        self.text += text + self.draw(st.sampled_from(["\n", "  # key = 1\n"]))

    def table(self, header: list[str], depth: int) -> None:
        dot = self.draw(st.sampled_from([".", " . "]))
        inner: list[tuple[list[str], str]] = []
        for key in self.keys():
            style = self.draw(Style) if depth else "value"
            if style == "header":
                inner.append(([*header, key], self.draw(st.sampled_from(["table", "array"]))))
            elif style == "dotted":
                for last in self.keys():
                    self.line(f"{key}{dot}{last} = {self.value(1, one_line=False)}")
            else:
                self.line(f"{key} = {self.value(depth, one_line=False)}")
        for path, kind in inner:
            for _ in range(self.draw(st.integers(1, 2)) if kind == "array" else 1):
                self.line(f"[[{dot.join(path)}]]" if kind == "array" else f"[ {dot.join(path)} ]")
                self.table(path, depth - 1)


@st.composite
def documents(draw: st.DrawFn) -> str:
    writer = Writer(draw)
    writer.table([], 3)
    return writer.text


def paths_of(value: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {path: value} if path else {}
    for key, inner in items:
        found |= paths_of(inner, (*path, key))
    return found


@given(documents())
def test_every_key_is_found_on_the_line_where_its_value_stands(text):
    values = paths_of(tomllib.loads(text))
    lines = key_lines(text)
    assert lines.keys() == values.keys()
    written = text.split("\n")
    for path, value in values.items():
        if isinstance(value, int) and value >= 1_000_000:
            assert str(value) in written[lines[path] - 1]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a",), 5),
        (("a", "b"), 1),
        (("a", "b", "c"), 2),
        (("a", "d"), 6),
        (("list",), 8),
        (("list", 1), 10),
        (("list", 1, "inner", "x"), 13),
        (("e", "f"), 15),
        (("e", "f", "g", "h"), 15),
        (("e", "many", 1), 18),
    ],
)
def test_a_table_stands_at_its_header_even_after_its_inner_tables(path, line):
    text = """[a.b]
c = '''
[a]
'''
[a]
d = 1

[[list]]
x = 1
[[list]]
x = 2
[list.inner]
x = 3
[e]
f.g = { h = 1 }
many = [
  1,
  2,
]
"""
    assert key_lines(text)[path] == line
