"""What every exporter needs: checked model folders, an output that appears whole or not at all, and its description.

A folder for an engine that takes both models by path::

    OUTPUT/
    ├── target/            the target, unchanged
    ├── draft/             the draft, unchanged
    ├── gkt-export.json    what this is, for programs: the command, the configuration, a hash of every file
    └── README.md          the same for people

Importing this loads no engine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gkt_plugins.config import as_written
from gkt_plugins.contracts import Exported, ExportRequest
from gkt_plugins.errors import ConfigError

__all__ = [
    "DRAFT_FOLDER",
    "MANIFEST",
    "README",
    "TARGET_FOLDER",
    "copy_model",
    "describe",
    "draft_folder",
    "effective_section",
    "fixed_gamma",
    "model_config",
    "refuse_leniency",
    "same_vocabulary",
    "staged",
]

MANIFEST = "gkt-export.json"
README = "README.md"
TARGET_FOLDER = "target"
DRAFT_FOLDER = "draft"

GAMMA_FOR_AUTO = 5
"""For engines that draft a fixed number of tokens."""


# ----------------------------------------------------------------------------------------------------- what is refused


def model_config(folder: Path, what: str) -> dict[str, Any]:
    """The ``config.json`` of a folder that can be exported as ``what``: ``target`` or ``draft``.

    :raises ConfigError: it holds no decoder-only model with its weights.
    """
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
    return config


def draft_folder(request: ExportRequest, stack: str) -> Path:
    """The draft's folder, for a stack that takes nothing but a draft model.

    :raises ConfigError: the drafter is another one, or the folder holds no model.
    """
    section = request.speculation
    draft = as_written(section).get("draft")
    if section.drafter != "model" or not isinstance(draft, str):
        raise ConfigError(
            f"{stack} is exported with drafter = 'model', got {section.drafter!r}; name a draft, or use {stack}'s own "
            "n-gram drafting, which needs no export"
        )
    folder = request.base_dir / draft
    model_config(folder, "draft")
    return folder


def refuse_leniency(request: ExportRequest, stack: str, *, lossless: Iterable[str]) -> None:
    """Refuse a verifier that ``stack`` would silently replace by an exact one.

    :raises ConfigError: the verifier is not among ``lossless``.
    """
    verifier = request.speculation.verifier
    if verifier not in lossless:
        raise ConfigError(
            f"{stack} itself verifies exactly, and the configuration says verifier = {verifier!r}; set verifier = "
            "'exact', or export to transformers"
        )


def same_vocabulary(target: Path, draft: Path, stack: str) -> None:
    """Refuse a pair whose heads differ in size, padding included, for a stack that wants them equal.

    :raises ConfigError: both sizes are named.
    """
    sizes = [_vocabulary(model_config(folder, what)) for folder, what in ((target, "target"), (draft, "draft"))]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ConfigError(
            f"{stack} needs a draft with the target's vocabulary, got {sizes[1]} tokens for the target's {sizes[0]}; "
            "resize the draft's embeddings, or export to transformers, which handles padded heads"
        )


def _vocabulary(config: dict[str, Any]) -> int | None:
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return int(size) if size else None


def fixed_gamma(request: ExportRequest, stack: str) -> tuple[int, tuple[str, ...]]:
    """Draft tokens per block for a stack that cannot choose them itself, and what is to be said about it."""
    gamma = request.speculation.gamma
    if isinstance(gamma, int):
        return gamma, ()
    note = f"gamma = 'auto' has no counterpart in {stack}: {GAMMA_FOR_AUTO} is written; 'gkt plan' finds the best one"
    return GAMMA_FOR_AUTO, (note,)


def effective_section(request: ExportRequest) -> dict[str, Any]:
    """``[speculation]`` as the folder has it: its own copy of the draft, and no key that has no effect."""
    section = request.speculation
    unused = {"rule", "epsilon", *type(section.rule_options).model_fields} - set(
        type(section.verifier_options).model_fields
    )
    if section.expected_acceptance is None:
        unused |= {"acceptance_band", "acceptance_window"}
    written = {key: value for key, value in as_written(section).items() if key not in unused and value is not None}
    return written | ({"draft": DRAFT_FOLDER} if "draft" in written else {})


# ------------------------------------------------------------------------------------------------------ what is written


@contextmanager
def staged(request: ExportRequest) -> Iterator[Path]:
    """A folder to fill. It becomes ``request.output`` when the block ends well, and vanishes otherwise.

    :raises ConfigError: the output has something in it, or lies inside the target's folder, or cannot be written.
    """
    output = request.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output {str(output)!r} already has something in it; name a new folder")
    if output.resolve().is_relative_to(request.target.resolve()):
        raise ConfigError(f"output {str(output)!r} lies inside the target's folder; name a folder beside it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
            folder = Path(temporary) / output.name
            folder.mkdir()
            yield folder
            folder.replace(output)
    except (OSError, shutil.Error) as exc:
        raise ConfigError(f"output {str(output)!r} cannot be written: {exc}; nothing is left of it") from exc


def copy_model(source: Path, target: Path, *, leave_out: Iterable[str] = ()) -> None:
    """Copy a model folder's files, without anything hidden. ``leave_out``: names that are not copied."""
    skipped = set(leave_out)
    ignore = lambda _, names: [name for name in names if name.startswith(".") or name in skipped]  # noqa: E731
    shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)


def describe(
    folder: Path, request: ExportRequest, exported: Exported, *, stack: str, needs: str, readme: str = README
) -> None:
    """Write :data:`MANIFEST` and ``readme`` into the finished ``folder``.

    :param needs: the stack's versions that take it, such as ``vllm>=0.28``.
    """
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "gkt_export": 1,
        "stack": stack,
        "needs": needs,
        "load": exported.load,
        "notes": exported.notes,
        "speculation": effective_section(request),
        "written_by": f"gkt-plugins {version('gkt-plugins')}",
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / readme).write_text(_readme(stack, needs, exported), encoding="utf-8")


def _readme(stack: str, needs: str, exported: Exported) -> str:
    load = "\n".join(f"    {line}" for line in exported.load.splitlines())
    notes = "".join(f"- {note}\n" for note in exported.notes)
    return (
        f"# A target with its draft, for {stack}\n\n"
        f"Needs {needs}. In this folder:\n\n{load}\n\n"
        + (f"Good to know:\n\n{notes}\n" if notes else "")
        + f"`{MANIFEST}` says the same to programs, with the configuration and a hash of every file.\n"
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
