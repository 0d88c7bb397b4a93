"""``gkt keys``: virtual keys of the gateway's clients."""

from __future__ import annotations

import re
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from gkt_plugins.errors import ConfigError

__all__ = ["KEY_PREFIX", "new_key", "register"]

KEY_PREFIX = "gkt-"
"""What keys begin with, so that secret scanners and people recognise one."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

keys = typer.Typer(help="Make keys for the gateway's clients.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(keys, name="keys")


@keys.callback()
def _root() -> None:
    """Make keys for the gateway's clients."""


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="Who gets it: letters, digits, - and _. Shown in reports.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="gkt.toml to add it to; without it the lines are only shown.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May see /dashboard and /metrics.")] = False,
    pipeline: Annotated[
        list[str] | None, typer.Option("--pipeline", help="May use this one only; may be repeated.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option("--requests-per-minute", min=1, help="Beyond it, 429.")
    ] = None,
    budget_per_day: Annotated[
        str | None, typer.Option("--budget-per-day", metavar="AMOUNT", help='UTC; a decimal such as "2.50".')
    ] = None,
) -> None:
    """Make a key. It is shown this once, on stdout, and kept nowhere; the configuration has its SHA-256."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a key's name has 1 to 64 letters, digits, - and _, got {name!r}")
    key = new_key()
    lines = [f"[gateway.keys.{name}]", f'sha256 = "{sha256(key.encode()).hexdigest()}"']
    if admin:
        lines.append("admin = true")
    if pipeline:
        lines.append(f"pipelines = [{', '.join(map(_quoted, pipeline))}]")
    if requests_per_minute is not None:
        lines.append(f"requests_per_minute = {requests_per_minute}")
    if budget_per_day is not None:
        lines.append(f"budget_per_day = {_quoted(budget_per_day)}")
    section = "\n".join(lines) + "\n"
    if config is None:
        _check([line for line in lines if not line.startswith("pipelines")])
        typer.echo(f"Add these lines to gkt.toml, and restart the gateway:\n\n{section}", err=True)
    else:
        _add(section, name, config)
        typer.echo(f"{name} was added to {config}; restart the gateway to let it in.", err=True)
    typer.echo("The key, which is shown only now:", err=True)
    typer.echo(key)


def new_key() -> str:
    """A key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)  # a JSON string is a TOML basic string


def _check(lines: list[str]) -> None:
    """:raises ConfigError: what was asked for is not allowed, whatever else the configuration has."""
    from gkt_plugins.config import load_config

    load_config(text="\n".join(lines))


def _add(section: str, name: str, config: Path) -> None:
    """Append ``section`` to the file, if the whole is a configuration that can be used."""
    from gkt_plugins.config import load_config

    if name in load_config(config).gateway.keys:
        raise ConfigError(f"{config} has a key {name!r} already; remove its section, or choose another name")
    text = config.read_text(encoding="utf-8")
    gap = "" if text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
    whole = f"{text}{gap}{section}"
    load_config(text=whole)
    try:
        with config.open("a", encoding="utf-8") as out:
            out.write(gap + section)
    except OSError as exc:
        raise ConfigError(f"{config} could not be written: {exc}; add the key by hand, or fix its permissions") from exc
