"""``gkt export``: a target and its draft in the form that a serving stack takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gkt_plugins.config import Config

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("export")(export)


def export(
    to: Annotated[str, typer.Option("--to", help="The stack: transformers, vllm, sglang, llama.cpp, or a plugin's.")],
    target: Annotated[Path, typer.Option("--target", help="Folder of the target model.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; must not exist.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="gkt.toml whose [speculation] is taken; not with --draft.")
    ] = None,
    draft: Annotated[Path | None, typer.Option("--draft", help="Folder of the draft model.")] = None,
    gamma: Annotated[str, typer.Option("--gamma", help="Draft tokens per block, or auto; with --draft.")] = "auto",
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the stack's exporter; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Write a folder that explains itself, and print what loads it there."""
    import json

    from gkt_plugins.config._source import ConfigSource
    from gkt_plugins.contracts import BuildContext, ExportRequest
    from gkt_plugins.errors import ConfigError
    from gkt_plugins.plugins import load_plugins

    exporters = load_plugins().exporters()
    chosen = ConfigSource.read(None, "", options or [], {}).data
    exporter = exporters.build(to, chosen, BuildContext(name=to, base_dir=Path()))
    loaded = _configuration(config, draft, gamma)
    if loaded.speculation is None:
        raise ConfigError(f"{loaded.source} has no [speculation] section; add one, or name a --draft")
    exported = exporter.export(ExportRequest(target, output, loaded.speculation, loaded.base_dir))
    if as_json:
        described = {"folder": str(exported.folder), "load": exported.load, "notes": exported.notes}
        typer.echo(json.dumps(described, ensure_ascii=False, indent=2))
        return
    typer.echo(f"wrote {exported.folder}; in that folder:\n")
    typer.echo("".join(f"    {line}\n" for line in exported.load.splitlines()))
    for note in exported.notes:
        typer.echo(f"note: {note}")


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
