"""``gkt vllm serve``: starts vLLM with its plugins named and its section written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

vllm = typer.Typer(help="vLLM with these plugins in it.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(vllm, name="vllm")


# No -h: vLLM has short options of several letters, such as -dph, in which an h would be found.
@vllm.command(
    options_metavar="[OPTIONS] MODEL [OPTIONS OF VLLM]",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--help"]},
)
def serve(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--gkt", help="gkt.toml; default: GKT_CONFIG, else gkt.toml in this folder.")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="The pipeline that guides; default: 'default', where it is there.")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the command instead of running it.")] = False,
) -> None:
    """Start vLLM. All other arguments are its own: the model, its address, anything in 'vllm serve --help'."""
    from gkt_plugins.config import load_config
    from gkt_vllm.launch import command, plugins_variable
    from gkt_vllm.pipelines import guided_pipeline
    from gkt_vllm.section import GktSection
    from gkt_vllm.versions import installed_version

    installed_version()
    loaded = load_config(config)  # what is wrong stops here, in a second, and not in a minute
    file = str((loaded.source or Path("gkt.toml")).resolve())
    section = GktSection(config=file, pipeline=pipeline) if pipeline else GktSection(config=file)
    guided_pipeline(loaded, section)
    words = command(section, context.args)
    named = plugins_variable(os.environ)
    if dry:
        import shlex

        typer.echo(f"VLLM_PLUGINS={shlex.quote(named)} {shlex.join(words)}")
        return
    os.execve(words[0], words, {**os.environ, "VLLM_PLUGINS": named})
