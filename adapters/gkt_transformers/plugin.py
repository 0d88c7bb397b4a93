"""What this package provides to gkt-plugins. Importing it loads no engine."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_plugins.contracts import BuildContext, Engine, Exporter, Factory
from gkt_plugins.hookspecs import hookimpl
from gkt_transformers.export import TransformersExporter
from gkt_transformers.options import TransformersOptions

__all__ = ["GKT_CONTRACT", "gkt_engines", "gkt_exporters"]

GKT_CONTRACT = 1


@hookimpl
def gkt_engines() -> Mapping[str, Factory[Engine]]:
    """``adapter = "transformers"``: a Hugging Face model in this process."""
    summary = "a Hugging Face model in this process, batched, speculating when [speculation] is configured"
    return {"transformers": Factory(_build, TransformersOptions, summary)}


@hookimpl
def gkt_exporters() -> Mapping[str, Factory[Exporter]]:
    """``gkt export --to transformers``."""
    summary = "a model folder that speculates by itself wherever trust_remote_code is on"
    return {"transformers": Factory(lambda _options, _context: TransformersExporter(), summary=summary)}


def _build(options: TransformersOptions, context: BuildContext) -> Engine:
    from gkt_transformers.engine import TransformersEngine

    return TransformersEngine.build(options, context)
