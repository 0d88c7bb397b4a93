"""Hugging Face transformers: an engine, a target and a drafter, and three ways into ``generate``.

Importing this loads no engine; using what it exports does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkt_transformers._decoding import GenerateSpeculativeOutput
    from gkt_transformers._enabling import disable, enable, last_report
    from gkt_transformers._generate import generate
    from gkt_transformers.engine import TransformersEngine
    from gkt_transformers.export import TransformersExporter
    from gkt_transformers.report import Report

__all__ = [
    "GenerateSpeculativeOutput",
    "Report",
    "TransformersEngine",
    "TransformersExporter",
    "disable",
    "enable",
    "generate",
    "last_report",
]

_HOMES = {
    "GenerateSpeculativeOutput": "_decoding",
    "Report": "report",
    "TransformersEngine": "engine",
    "TransformersExporter": "export",
    "disable": "_enabling",
    "enable": "_enabling",
    "generate": "_generate",
    "last_report": "_enabling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gkt_plugins.errors import require

    require("transformers", extra="transformers")
    require("torch", extra="transformers")
    return getattr(require(f"{__name__}.{_HOMES[name]}", extra="transformers"), name)
