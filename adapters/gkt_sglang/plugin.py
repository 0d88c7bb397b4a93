"""What this package provides to gkt-plugins. Importing it loads no engine."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_plugins.contracts import Exporter, Factory
from gkt_plugins.hookspecs import hookimpl
from gkt_sglang.export import SglangExporter

__all__ = ["GKT_CONTRACT", "gkt_exporters"]

GKT_CONTRACT = 1

_SUMMARY = "both models and the flags of a standalone draft"


@hookimpl
def gkt_exporters() -> Mapping[str, Factory[Exporter]]:
    """``gkt export --to sglang``."""
    return {"sglang": Factory(lambda _options, _context: SglangExporter(), summary=_SUMMARY)}
