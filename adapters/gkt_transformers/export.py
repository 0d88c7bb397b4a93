"""A model folder that speculates by itself wherever ``trust_remote_code`` is on: weights, draft, and how to use it.

::

    OUTPUT/
    ├── config.json, weights, tokenizer …   the model, unchanged
    ├── draft/                              the draft, where there is one
    ├── gkt.toml                            how blocks are drafted and accepted
    └── custom_generate/
        ├── generate.py                     what transformers puts in the place of ``generate``
        └── requirements.txt

Importing this loads no engine.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from gkt_plugins.config import SpeculationSection, as_written
from gkt_plugins.errors import ConfigError

__all__ = ["DRAFT_FOLDER", "export_folder"]

DRAFT_FOLDER = "draft"
_HEADER = "# How this model speculates. Relative paths start in this folder.\n"


def export_folder(model: Path, output: Path, speculation: SpeculationSection, *, base_dir: Path | None = None) -> Path:
    """Write ``output``; it appears whole or not at all.

    :param model: a folder that ``save_pretrained`` wrote.
    :param output: must not exist, or be empty.
    :param speculation: what the folder does; a draft that it names is copied along.
    :param base_dir: where a relative draft path starts.
    :returns: ``output``.
    :raises ConfigError: a folder is missing or of the wrong kind, or ``output`` has something in it.
    """
    _check_model(model, "model")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output {str(output)!r} already has something in it; name a new folder")
    if output.resolve().is_relative_to(model.resolve()):
        raise ConfigError(f"output {str(output)!r} lies inside the model folder; name a folder beside it")
    written = _effective(speculation)
    draft = written.get("draft")
    if draft is not None:
        folder = (base_dir or Path()) / draft
        _check_model(folder, "draft")
        written["draft"] = DRAFT_FOLDER
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        staged = Path(temporary) / output.name
        _copy(model, staged)
        if draft is not None:
            _copy(folder, staged / DRAFT_FOLDER)
        (staged / "gkt.toml").write_text(_HEADER + _toml("speculation", written), encoding="utf-8")
        _write_custom_generate(staged / "custom_generate")
        staged.replace(output)
    return output


def _effective(speculation: SpeculationSection) -> dict[str, Any]:
    """The section without a leniency that its verifier does not look at; a file that has one is refused."""
    written = as_written(speculation)
    used = type(speculation.verifier_options).model_fields
    unused = {"rule", "epsilon", *type(speculation.rule_options).model_fields} - set(used)
    return {key: value for key, value in written.items() if key not in unused}


def _check_model(folder: Path, what: str) -> None:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{what} folder {str(folder)!r} has no config.json; give a folder that save_pretrained wrote")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ConfigError(f"config.json of {what} folder {str(folder)!r} is not valid JSON: {exc}") from exc
    if not isinstance(config, dict) or config.get("is_encoder_decoder"):
        raise ConfigError(f"{what} folder {str(folder)!r} holds an encoder-decoder model, which cannot speculate")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ConfigError(f"{what} folder {str(folder)!r} has no weights; copy the complete folder again")
    if (folder / "custom_generate").exists() and not (folder / "gkt.toml").is_file():
        raise ConfigError(f"{what} folder {str(folder)!r} has a custom_generate of its own, which would be lost")


def _copy(source: Path, target: Path) -> None:
    """Model files alone: nothing hidden, and nothing of an earlier export."""
    ours = ("custom_generate", "gkt.toml", DRAFT_FOLDER)
    shutil.copytree(source, target, ignore=lambda _, names: [n for n in names if n.startswith(".") or n in ours])


def _write_custom_generate(folder: Path) -> None:
    folder.mkdir()
    source = files("gkt_transformers").joinpath("_exported_generate.py").read_text(encoding="utf-8")
    (folder / "generate.py").write_text(source, encoding="utf-8")
    # Without extras: transformers looks each line up as the name of a distribution.
    requirements = f"gkt-plugins>={version('gkt-plugins')}\ntransformers>=5.16\ntorch>=2.6\n"
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")


def _toml(table: str, values: Mapping[str, Any]) -> str:
    """One flat table; JSON's strings, numbers and arrays are TOML's."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join([f"[{table}]", *lines, ""])
