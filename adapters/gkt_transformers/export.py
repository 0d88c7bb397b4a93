"""A model folder that speculates by itself wherever ``trust_remote_code`` is on: weights, draft, and how to use it.

::

    OUTPUT/
    ├── config.json, weights, tokenizer …   the target, unchanged
    ├── draft/                              the draft, where there is one
    ├── gkt.toml                            how blocks are drafted and accepted
    ├── gkt-export.json, GKT.md             what this is
    └── custom_generate/
        ├── generate.py                     what transformers puts in the place of ``generate``
        └── requirements.txt

Importing this loads no engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from gkt_plugins.config import as_written
from gkt_plugins.contracts import Exported, ExportRequest
from gkt_plugins.errors import ConfigError
from gkt_plugins.exporting import (
    DRAFT_FOLDER,
    MANIFEST,
    copy_model,
    describe,
    effective_section,
    model_config,
    staged,
)

__all__ = ["DRAFT_FOLDER", "TransformersExporter"]

_README = "GKT.md"
"""The folder's README.md is the model's own."""
_OURS = (DRAFT_FOLDER, "custom_generate", "gkt.toml", MANIFEST, _README)
_HEADER = "# How this model speculates. Relative paths start in this folder.\n"
_LOAD = """\
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)"""


class TransformersExporter:
    """``gkt export --to transformers``."""

    def export(self, request: ExportRequest) -> Exported:
        """Write the folder; it appears whole or not at all.

        :raises ConfigError: a folder is missing or of the wrong kind, or the output has something in it.
        """
        model_config(request.target, "target")
        if (request.target / "custom_generate").exists() and not (request.target / "gkt.toml").is_file():
            raise ConfigError(
                f"target folder {str(request.target)!r} has a custom_generate of its own, which would be lost; "
                "remove it first, or use gkt_transformers.enable"
            )
        named = as_written(request.speculation).get("draft")
        draft = request.base_dir / named if named is not None else None
        if draft is not None:
            model_config(draft, "draft")
        exported = Exported(request.output, _LOAD)
        with staged(request) as folder:
            copy_model(request.target, folder, leave_out=_OURS)
            if draft is not None:
                copy_model(draft, folder / DRAFT_FOLDER, leave_out=_OURS)
            (folder / "gkt.toml").write_text(
                _HEADER + _toml("speculation", effective_section(request)), encoding="utf-8"
            )
            _write_custom_generate(folder / "custom_generate")
            needs = f"gkt-plugins[transformers]>={version('gkt-plugins')}"
            describe(folder, request, exported, stack="transformers", needs=needs, readme=_README)
        return exported


def _write_custom_generate(folder: Path) -> None:
    folder.mkdir()
    source = files("gkt_transformers").joinpath("_exported_generate.py").read_text(encoding="utf-8")
    (folder / "generate.py").write_text(source, encoding="utf-8")
    # Without extras: transformers looks each line up as the name of a distribution.
    requirements = f"gkt-plugins>={version('gkt-plugins')}\ntransformers>=5.16\ntorch>=2.6\n"
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")


def _toml(table: str, values: Mapping[str, Any]) -> str:
    """One flat table; JSON's strings, numbers and arrays are TOML's."""
    return "\n".join([f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])
