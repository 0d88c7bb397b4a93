"""The page about distillation lists every key, with its default and its meaning, as the code has them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gkt_plugins.config.sections import Section
from gkt_plugins.distill.options import (
    DataSection,
    EndpointSection,
    EvaluationSection,
    LoraSection,
    LossSection,
    ModelsSection,
    TrainSection,
    load_options,
)

PAGE = (Path(__file__).parents[2] / "docs" / "distillation.md").read_text(encoding="utf-8")
SECTIONS = (ModelsSection, DataSection, LossSection, TrainSection, LoraSection, EvaluationSection, EndpointSection)


def table(section: type[Section]) -> str:
    """Heading and rows, as the page has to have them."""
    heading = re.match(r"``(\[.*?\])``", section.__doc__ or "")
    assert heading is not None, f"the docstring of {section.__name__} opens with its heading"
    lines = [f"### `{heading.group(1)}`", "", "| Key | Default | Meaning |", "|---|---|---|"]
    for name, field in section.model_fields.items():
        default = "required" if field.is_required() else json.dumps(field.default)
        shown = {"required": "required", "null": "not set"}.get(default, f"`{default}`")
        meaning = " ".join((field.description or "").replace("``", "`").split())
        assert meaning, f"{section.__name__}.{name} has no docstring"
        lines.append(f"| `{field.alias or name}` | {shown} | {meaning} |")
    return "\n".join(lines)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_the_keys_defaults_and_meanings_of_each_section(section):
    assert f"\n{table(section)}\n" in PAGE


def test_the_example_can_be_used(tmp_path):
    (tmp_path / "distill.toml").write_text(PAGE.partition("```toml\n")[2].partition("```")[0])
    assert load_options(tmp_path / "distill.toml").evaluation.temperature == 1.0
