"""``gkt …``: one file a verb. A verb's file is light; what it needs is imported when it runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from gkt_plugins import __version__
from gkt_plugins.errors import GktError

__all__ = ["VERBS", "app", "main"]

VERBS = (
    "config", "plugins", "doctor", "serve", "keys", "run", "guide", "ledger", "export", "distill", "acceptance", "plan",
    "vllm", "demo",
)  # fmt: skip
"""Each is a file beside this one, with a function ``register`` that adds it."""

app = typer.Typer(
    name="gkt",
    help="Large language models made cheaper and faster inside the serving stacks that you already run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _verb in VERBS:
    importlib.import_module(f"gkt_plugins.cli.{_verb}").register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gkt-plugins {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="GKT_DEBUG", help="Show the traceback of an error.")] = False,
) -> None:
    # For main(), which outlives the parsed options.
    if debug:
        os.environ["GKT_DEBUG"] = "1"
    else:
        os.environ.pop("GKT_DEBUG", None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``gkt``. An error that we raise on purpose is one sentence on stderr and exit code 2."""
    try:
        app(args=arguments)
    except GktError as exc:
        if os.environ.get("GKT_DEBUG"):
            raise
        for line in str(exc).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
