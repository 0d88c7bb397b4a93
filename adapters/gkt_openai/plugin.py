"""What this package provides to gkt-plugins. Importing it loads no client."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_openai.options import OpenAIOptions
from gkt_plugins.contracts import BuildContext, Engine, Factory
from gkt_plugins.hookspecs import hookimpl

__all__ = ["GKT_CONTRACT", "gkt_engines"]

GKT_CONTRACT = 1


def _build(options: OpenAIOptions, context: BuildContext) -> Engine:
    from gkt_openai.engine import OpenAIEngine

    return OpenAIEngine(options, context)


@hookimpl
def gkt_engines() -> Mapping[str, Factory[Engine]]:
    """``adapter = "openai"``."""
    return {"openai": Factory(_build, OpenAIOptions, "any OpenAI-compatible endpoint")}
