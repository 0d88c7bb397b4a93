"""The configuration page lists every key, with its default and its meaning, as the code has them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from gkt_plugins.config import load_config
from gkt_plugins.config.sections import ChoosingSection, Config, Section
from gkt_plugins.plugins import load_plugins

PAGE = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")

PLUGINS = load_plugins(env={"GKT_PLUGINS": "off"})


def rows(model: type[BaseModel], keys: list[str]) -> list[str]:
    """The table rows of ``keys``, as the page has to have them."""
    found = []
    for key in keys:
        field = model.model_fields[key]
        default = json.dumps(field.default) if not field.is_required() else "required"
        shown = {"required": "required", "null": "not set"}.get(default, f"`{default}`")
        found.append(f"| `{key}` | {shown} | {(field.description or '').replace('``', '`')} |")
    return found


def sections(model: type[BaseModel]) -> Iterator[type[Section]]:
    """The sections below ``model``, whatever containers they are in."""
    for field in model.model_fields.values():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield inner
                yield from sections(inner)


def expected() -> Iterator[tuple[str, list[str]]]:
    """Heading, and the rows below it."""
    for section in sections(Config):
        heading = re.match(r"``(\[.*?\])``", section.__doc__ or "")
        assert heading is not None, f"the docstring of {section.__name__} opens with its heading"
        chooses = section.chooses if issubclass(section, ChoosingSection) else {}
        keys = section.own_keys() if issubclass(section, ChoosingSection) else list(section.model_fields)
        yield f"## `{heading.group(1)}`", rows(section, [key for key in keys if key != "guidance"])
        for key, (family, _) in chooses.items():
            for name, factory in PLUGINS.family(family).items():
                yield f'### `{key} = "{name}"`', rows(factory.options, list(factory.options.model_fields))


EXPECTED = dict(expected())


@pytest.mark.parametrize("heading", EXPECTED)
def test_the_page_has_the_keys_defaults_and_meanings_of_each_section(heading):
    assert f"\n{heading}\n" in PAGE
    body = re.split(r"\n##+ ", PAGE.split(f"\n{heading}\n", 1)[1], maxsplit=1)[0]
    assert [line for line in body.splitlines() if line.startswith("| `")] == EXPECTED[heading]


def test_the_example_on_the_page_is_valid():
    example = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    config = load_config(text=example.group(1), env={}, plugins=PLUGINS)
    assert set(config.pipelines) == {"default"}
    assert config.speculation is not None
