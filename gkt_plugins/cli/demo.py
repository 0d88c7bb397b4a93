"""``gkt demo``: see the methods work, on this machine, offline, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

_JSON = typer.Option("--json", help="Print one JSON object on standard output.")


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""
    demo = typer.Typer(invoke_without_command=True, help="The methods on small trained models; nothing is downloaded.")
    demo.callback()(_demo)
    demo.command("distill")(_distill)
    app.add_typer(demo, name="demo")


def _demo(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the picture, the figures and the ledger.")
    ] = Path("demo-out"),
    problems: Annotated[int, typer.Option("--problems", min=2, help="Word problems per way of answering.")] = 300,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Guidance, and speculation with a draft before and after distillation, on small trained models; offline."""
    if context.invoked_subcommand is not None:
        return
    _require("transformers", "matplotlib")
    from gkt_plugins.demo.run import run_demo

    run_demo(output, num_problems=problems, as_json=as_json)


def _distill(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the draft and the picture.")] = Path(
        "demo-out/distilled"
    ),
    steps: Annotated[int, typer.Option("--steps", min=20, help="Optimiser steps.")] = 60,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Distil the demo draft, live: in minutes on two cores its acceptance rises."""
    _require("transformers", "accelerate", "matplotlib")
    from gkt_plugins.demo.distilling import run_demo_distill

    run_demo_distill(output, steps=steps, as_json=as_json)


def _require(*modules: str) -> None:
    from gkt_plugins.errors import require

    for module in modules:
        require(module, extra="demo")
