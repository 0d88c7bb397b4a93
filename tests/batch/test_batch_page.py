"""What docs/batch.md shows is what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gkt_plugins.batch.lines import ROUTES, read_line
from gkt_plugins.batch.on_ray import LINES_PER_BLOCK
from gkt_plugins.contracts import Sampling
from gkt_plugins.guidance.batch import BatchOptions

PAGE = (Path(__file__).parents[2] / "docs" / "batch.md").read_text(encoding="utf-8")


def test_the_line_on_the_page_is_a_request():
    asked, _ = re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
    line = read_line(1, asked.encode(), {"default": Sampling()})
    assert line.error is None
    assert (line.custom_id, line.pipeline) == ("q1", "default")
    assert line.asked is not None
    assert line.asked.requests[0].sampling.max_tokens == 200


def test_the_answer_on_the_page_has_the_keys_that_answers_have(fakes, gkt_run, chat, write, rows):
    _, shown = re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
    shown = shown.replace("[…]", "[]").replace("{…}", "{}").replace(", …}", "}")
    write(chat("q1"))
    assert gkt_run() == 0

    def all_of(shown: object, real: object) -> bool:
        if isinstance(shown, dict) and isinstance(real, dict):
            return shown.keys() <= real.keys() and all(all_of(value, real[key]) for key, value in shown.items())
        return type(shown) is type(real)

    assert all_of(json.loads(shown), rows()["q1"])


def test_the_page_has_the_routes_and_the_numbers_of_the_code():
    assert all(f"`{route}`" in PAGE for route in ROUTES)
    assert f"Workers take {LINES_PER_BLOCK} lines at a time" in PAGE
    options = BatchOptions()
    assert (options.teacher_batch, options.student_batch, options.in_flight) == (16, 16, 64)
    assert "(16 by default" in PAGE
    assert "At\nmost four times as many lines" in PAGE
