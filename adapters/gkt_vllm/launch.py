"""How to start vLLM so that its plugins load: its environment, and its command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from gkt_plugins.errors import ConfigError

__all__ = ["command", "plugins_variable", "unloaded"]

_BY_DEFAULT = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
"""Groups that vLLM loads whole where ``VLLM_PLUGINS`` is not set; endpoint plugins are the exception."""


def plugins_variable(environment: Mapping[str, str]) -> str:
    """What ``VLLM_PLUGINS`` has to be: everything that loads without us, and ``gkt``, which has to be named."""
    given = environment.get("VLLM_PLUGINS")
    if given is None:
        names = sorted({point.name for group in _BY_DEFAULT for point in entry_points(group=group)})
    else:
        names = [name for name in given.split(",") if name]
    return ",".join([*(name for name in names if name != "gkt"), "gkt"])


def unloaded(environment: Mapping[str, str]) -> str | None:
    """Why a server of vLLM's would not load the plugin of its front door, and what to do; None: it will."""
    if environment.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        return "vLLM's Rust frontend loads no plugins; unset VLLM_USE_RUST_FRONTEND"
    given = environment.get("VLLM_PLUGINS")
    if "gkt" in (given or "").split(","):
        return None
    return (
        f"vLLM loads the plugin for that only where it is named; start it with VLLM_PLUGINS="
        f"{given + ',' if given else ''}gkt, which 'gkt vllm serve' does by itself"
    )


def command(config: Path, pipeline: str | None, arguments: Sequence[str]) -> list[str]:
    """The command that starts the server.

    :param arguments: vLLM's own: the model, and options.
    :raises ConfigError: they bring a section already.
    """
    section = {"config": str(config.resolve())} | ({"pipeline": pipeline} if pipeline else {})
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *_with_section(list(arguments), section)]


def _with_section(arguments: list[str], section: Mapping[str, str]) -> list[str]:
    """``arguments`` with the section in the JSON that they bring; where they bring none, with keys of its own, which
    vLLM merges into nothing else."""
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")  # as vLLM reads it
        if name.startswith(f"{_OPTION}.gkt"):
            raise ConfigError(_TWICE)
        if name == _OPTION:
            after = at + (1 if equals else 2)
            given = _table(value if equals else "".join(arguments[at + 1 : after]))
            if "gkt" in given:
                raise ConfigError(_TWICE)
            return [*arguments[:at], _OPTION, json.dumps({**given, "gkt": section}), *arguments[after:]]
    return [*arguments, *(word for key, value in section.items() for word in (f"{_OPTION}.gkt.{key}", value))]


def _table(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise ConfigError(f"{_OPTION} must be followed by a JSON object: {exc}") from exc
    if not isinstance(found, dict):
        raise ConfigError(f"{_OPTION} must be followed by a JSON object, got {text!r}")
    return found


_OPTION = "--additional-config"
_TWICE = "gkt vllm serve writes additional_config.gkt itself; leave it out, or start vLLM directly"
