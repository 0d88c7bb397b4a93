"""What this package provides to gkt-plugins. Importing it loads no client."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_plugins.contracts import BuildContext, Engine, Factory
from gkt_plugins.hookspecs import hookimpl
from gkt_tgi.options import TGIOptions

__all__ = ["GKT_CONTRACT", "gkt_engines"]

GKT_CONTRACT = 1


def _build(options: TGIOptions, context: BuildContext) -> Engine:
    from gkt_tgi.engine import TGIEngine

    return TGIEngine(options, context)


@hookimpl
def gkt_engines() -> Mapping[str, Factory[Engine]]:
    """``adapter = "tgi"``."""
    return {"tgi": Factory(_build, TGIOptions, "text-generation-inference, by its own routes")}
