"""``gkt demo``: see both methods work, on this machine, offline, in about two minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""

    @app.command()
    def demo(
        output: Annotated[
            Path, typer.Option("--output", "-o", help="Folder for the picture, the figures and the ledger.")
        ] = Path("demo-out"),
        problems: Annotated[int, typer.Option("--problems", min=2, help="Word problems per way of answering.")] = 300,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
    ) -> None:
        """Both methods on small trained models that come with the package; nothing is downloaded."""
        from gkt_plugins.errors import require

        for module in ("transformers", "matplotlib"):
            require(module, extra="demo")
        from gkt_plugins.demo.run import run_demo

        run_demo(output, num_problems=problems, as_json=as_json)
