"""``gkt export``: a model in the form that a serving stack takes without any code."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gkt_plugins.config import Config

__all__ = ["register"]

_EXPORTERS = {"transformers": "gkt_transformers.export"}
"""Value of ``--to`` → module with ``export_folder``."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("export")(export)


def export(
    to: Annotated[str, typer.Option("--to", help="The stack: transformers.")],
    model: Annotated[Path, typer.Option("--model", help="Folder of the target model.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; must not exist.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="gkt.toml whose [speculation] is taken; not with --draft.")
    ] = None,
    draft: Annotated[Path | None, typer.Option("--draft", help="Folder of the draft model.")] = None,
    gamma: Annotated[str, typer.Option("--gamma", help="Draft tokens per block, or auto; with --draft.")] = "auto",
) -> None:
    """Write a model folder that speculates by itself."""
    from gkt_plugins._wording import suggestion
    from gkt_plugins.errors import ConfigError

    if to not in _EXPORTERS:
        raise ConfigError(f"--to must name a stack, got {to!r}; {suggestion(to, _EXPORTERS)}")
    loaded = _configuration(config, draft, gamma)
    if loaded.speculation is None:
        raise ConfigError(f"{loaded.source} has no [speculation] section; add one, or name a --draft")
    exporter = importlib.import_module(_EXPORTERS[to])
    exporter.export_folder(model, output, loaded.speculation, base_dir=loaded.base_dir)
    typer.echo(f"wrote {output}: load it with trust_remote_code=True, and generate speculates")


def _configuration(config: Path | None, draft: Path | None, gamma: str) -> Config:
    import json

    from gkt_plugins.config import load_config
    from gkt_plugins.errors import ConfigError

    if (config is None) == (draft is None):
        raise ConfigError(
            "expected either --config or --draft, got both or neither; a draft in gkt.toml needs no --draft"
        )
    if draft is None:
        if gamma != "auto":
            raise ConfigError("--gamma goes with --draft; with --config, set speculation.gamma there")
        return load_config(config)
    value = gamma if gamma.isdecimal() else json.dumps(gamma)
    return load_config(
        text=f'[speculation]\ndrafter = "model"\ndraft = {json.dumps(str(draft.absolute()))}\ngamma = {value}\n'
    )
