"""What importing costs: no engine, no server, no database, no plotting before they are used."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest

HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "vllm",
    "starlette",
    "uvicorn",
    "matplotlib",
    "scipy",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "httpx2",
    "orjson",
    "prometheus_client",
    "opentelemetry",
    "huggingface_hub",
    "ray",
    "redis",
)

PLUGIN_MODULES = sorted(
    entry.value
    for entry in metadata.entry_points(group="gkt_plugins")
    if entry.dist is not None and entry.dist.name == "gkt-plugins"
)

CORE_MODULES = (
    "gkt_plugins",
    "gkt_plugins.cli",
    "gkt_plugins.config",
    "gkt_plugins.contracts",
    "gkt_plugins.errors",
    "gkt_plugins.exporting",
    "gkt_plugins.hookspecs",
    "gkt_plugins.plugins",
    "gkt_plugins.testing",
    "gkt_transformers",
)

HELP = (
    ["--help"],
    ["config", "--help"],
    ["config", "check", "--help"],
    ["config", "schema", "--help"],
    ["plugins", "--help"],
    ["keys", "new", "--help"],
    ["run", "--help"],
    ["ledger", "--help"],
    ["ledger", "report", "--help"],
    ["export", "--help"],
    ["plan", "--help"],
    ["distill", "--help"],
    ["acceptance", "--help"],
    ["demo", "--help"],
)


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after ``code``."""
    report = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    script = f"import atexit\ndef report():\n    {report}\natexit.register(report)\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_probe_sees_what_is_loaded():
    assert "sqlite3" in loaded_by("import sqlite3")


@pytest.mark.parametrize("module", [*CORE_MODULES, *PLUGIN_MODULES])
def test_importing_loads_nothing_heavy(module):
    assert not loaded_by(f"import {module}") & set(HEAVY)


def test_every_plugin_module_that_ships_is_among_them():
    assert PLUGIN_MODULES == [
        "gkt_llamacpp.plugin",
        "gkt_openai.plugin",
        "gkt_plugins.builtin",
        "gkt_sglang.plugin",
        "gkt_tgi.plugin",
        "gkt_transformers.plugin",
        "gkt_vllm.plugin",
    ]


def test_loading_plugins_and_a_configuration_loads_nothing_heavy():
    text = '[engines.edge]\\nadapter = "transformers"\\nmodel = "m"\\n[pipelines.default]\\nstudent = "edge"'
    code = f"from gkt_plugins.config import load_config; load_config(text='{text}')"
    assert not loaded_by(code) & set(HEAVY)


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_the_help_of_a_verb_loads_nothing_heavy(arguments):
    assert not loaded_by(f"from gkt_plugins.cli import main; main({arguments!r})") & set(HEAVY)


def test_the_schema_and_the_list_of_plugins_load_nothing_heavy():
    for arguments in (["config", "schema"], ["plugins", "--json"]):
        assert not loaded_by(f"from gkt_plugins.cli import main; main({arguments!r})") & set(HEAVY)
