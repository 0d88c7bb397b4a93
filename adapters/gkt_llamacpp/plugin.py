"""What this package provides to gkt-plugins. Importing it loads no engine."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_llamacpp.export import LlamaCppExporter, LlamaCppExportOptions
from gkt_plugins.contracts import Exporter, Factory
from gkt_plugins.hookspecs import hookimpl

__all__ = ["GKT_CONTRACT", "gkt_exporters"]

GKT_CONTRACT = 1

_SUMMARY = "both models as GGUF, or the commands that convert them, and llama-server's flags"


@hookimpl
def gkt_exporters() -> Mapping[str, Factory[Exporter]]:
    """``gkt export --to llama.cpp``."""
    return {"llama.cpp": Factory(LlamaCppExporter, LlamaCppExportOptions, _SUMMARY)}
