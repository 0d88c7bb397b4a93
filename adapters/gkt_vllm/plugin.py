"""What this package provides to gkt-plugins. Importing it loads no engine."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_plugins.contracts import BuildContext, Engine, Exporter, Factory
from gkt_plugins.hookspecs import hookimpl
from gkt_vllm.export import VllmExporter, VllmExportOptions
from gkt_vllm.options import VllmOptions

__all__ = ["GKT_CONTRACT", "gkt_engines", "gkt_exporters"]

GKT_CONTRACT = 1

_SUMMARY = "both models and the --speculative-config that loads them"


def _build(options: VllmOptions, context: BuildContext) -> Engine:
    from gkt_vllm.engine import build_engine

    return build_engine(options, context)


@hookimpl
def gkt_engines() -> Mapping[str, Factory[Engine]]:
    """``adapter = "vllm"``."""
    return {"vllm": Factory(_build, VllmOptions, "vLLM: the server around this process, or an engine in it")}


@hookimpl
def gkt_exporters() -> Mapping[str, Factory[Exporter]]:
    """``gkt export --to vllm``."""
    return {"vllm": Factory(VllmExporter, VllmExportOptions, _SUMMARY)}
