"""What this package provides to gkt-plugins. Importing it loads no engine."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_plugins.contracts import Exporter, Factory
from gkt_plugins.hookspecs import hookimpl
from gkt_vllm.export import VllmExporter, VllmExportOptions

__all__ = ["GKT_CONTRACT", "gkt_exporters"]

GKT_CONTRACT = 1

_SUMMARY = "both models and the --speculative-config that loads them"


@hookimpl
def gkt_exporters() -> Mapping[str, Factory[Exporter]]:
    """``gkt export --to vllm``."""
    return {"vllm": Factory(VllmExporter, VllmExportOptions, _SUMMARY)}
