"""Where a draft came from, written beside its weights."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from gkt_plugins.distill.options import DistillOptions
from gkt_plugins.distill.report import DistillReport
from gkt_plugins.distill.samples import PromptItem

__all__ = ["NAME", "data_hash", "provenance", "weights_hash"]

NAME = "provenance.json"

_PACKAGES = ("gkt-plugins", "torch", "transformers", "accelerate", "tokenizers", "peft")


def provenance(
    options: DistillOptions,
    *,
    command: Sequence[str],
    target: str,
    draft: str,
    training: Sequence[PromptItem],
    held_out: Sequence[PromptItem],
    report: DistillReport,
    processes: int,
) -> dict[str, Any]:
    """All that says how the weights beside it were made, as JSON would have it.

    :param target: folder or hub id, as loaded; likewise ``draft``, the one that training began with.
    """
    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "options": options.model_dump(mode="json", by_alias=True),
        "target": {"name": target, "sha256": weights_hash(target)},
        "start_draft": {"name": draft, "sha256": weights_hash(draft)},
        "data": {
            "prompts": len(training),
            "sha256": data_hash(training),
            "held_out_prompts": len(held_out),
            "held_out_sha256": data_hash(held_out),
        },
        "best_step": report.best_step,
        "tokens": report.tokens,
        "processes": processes,
        "acceptance": {
            "kind": "acceptance_tv on held-out answers of the target",
            "temperature": options.evaluation.temperature,
            "before": asdict(report.before),
            "after": asdict(report.after),
        },
        "block_efficiency": {
            "gamma": report.gamma,
            "before": asdict(report.efficiency_before),
            "after": asdict(report.efficiency_after),
        },
    }


def data_hash(items: Sequence[PromptItem]) -> str:
    """SHA-256 over the token ids of prompts and answers, in order."""
    digest = sha256()
    for item in items:
        digest.update(json.dumps([item.ids, item.answer], separators=(",", ":")).encode())
    return digest.hexdigest()


def weights_hash(source: str) -> str | None:
    """SHA-256 over a folder's weight files and ``config.json``, by name; None for what is no folder."""
    folder = Path(source)
    if not folder.is_dir():
        return None
    digest = sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin") or path.name == "config.json":
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
