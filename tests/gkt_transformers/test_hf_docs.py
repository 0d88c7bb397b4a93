"""docs/transformers.md: its examples run, and its tables agree with the code."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from typer.testing import CliRunner

from gkt_plugins.cli import app
from gkt_plugins.config import load_config
from gkt_transformers._generation_options import ARGUMENTS, FIELDS
from gkt_transformers.options import TransformersOptions

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"


def test_every_example_runs_as_it_stands(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GKT_CONFIG", raising=False)
    shutil.copytree(tiny.folder("llama"), "models/target")
    shutil.copytree(tiny.folder("draft"), "models/draft")
    namespace: dict[str, object] = {}
    ran = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        ran.append(language)
        if language == "toml":
            load_config(text=block)
            if not Path("gkt.toml").exists():
                Path("gkt.toml").write_text(block)
        elif language == "sh":
            result = CliRunner().invoke(app, shlex.split(block)[1:])
            assert result.exit_code == 0, result.output
        else:
            exec(compile(block, str(PAGE), "exec"), namespace)
    assert ran.count("python") == 4
    assert {"toml", "sh"} <= set(ran)


def _named(heading: str, page: str) -> set[str]:
    table = page[page.index(heading) :].split("\n\n")[0]
    return set(re.findall(r"`(\w+)", table))


def test_the_tables_name_every_option_that_is_honoured_refused_or_harmless():
    page = PAGE.read_text()
    honoured, refused = _named("| honoured |", page), _named("| refused |", page)
    harmless = set(re.findall(r"`(\w+)", page[page.index("Without effect") :].split("\n\n")[0]))
    for name, field in {**FIELDS, **ARGUMENTS}.items():
        if name not in ("transformers_version", "inputs"):
            assert name in {"honoured": honoured, "refused": refused, "harmless": harmless}[field.treatment], name


def test_the_table_of_the_engine_s_options_is_complete():
    assert _named("| option | default |", PAGE.read_text()) >= set(TransformersOptions.model_fields)
