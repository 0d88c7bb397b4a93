"""``gkt serve``: the OpenAI-compatible gateway."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("serve")(serve)


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", help="gkt.toml; default: GKT_CONFIG, else gkt.toml in this folder.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; default: gateway.host.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="0 takes a free one; default: gateway.port.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that share the port.")] = 1,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A dotted override; may be repeated.")
    ] = None,
) -> None:
    """Serve every pipeline as a model of the OpenAI API, until SIGTERM or Ctrl+C."""
    from gkt_plugins.config import load_config
    from gkt_plugins.errors import require
    from gkt_plugins.gateway.workers import counting_together
    from gkt_plugins.plugins import load_plugins

    plugins = load_plugins()
    loaded = load_config(config, overrides=overrides or [], plugins=plugins)
    models = ", ".join(f"gkt/{name}" for name in loaded.pipelines)

    def ready(url: str) -> None:
        typer.echo(f"Serving {models} at {url}/v1\nDashboard: {url}/dashboard", err=True)

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with counting_together() if workers > 1 else nullcontext():
        for module in ("starlette", "uvicorn", "orjson", "prometheus_client"):
            require(module, extra="gateway")
        from gkt_plugins.gateway.serving import serve as serve_gateway

        serve_gateway(loaded, plugins, dict(os.environ), host=host, port=port, workers=workers, ready=ready)
