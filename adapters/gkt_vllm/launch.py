"""How to start vLLM so that its plugins load: its environment, and its command line."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from gkt_plugins.errors import ConfigError
from gkt_vllm.section import GktSection

__all__ = ["RUST_FRONTEND", "command", "plugins_variable", "unloaded", "uses_rust"]

RUST_FRONTEND = "VLLM_USE_RUST_FRONTEND"
"""vLLM's own switch."""

_BY_DEFAULT = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
"""Groups that vLLM loads whole where ``VLLM_PLUGINS`` is not set; endpoint plugins are the exception."""


_GRPC = ("vllm.entrypoints.launchers.grpc_server", "vllm.entrypoints.grpc_server")
"""Imported where ``--grpc`` is given, and nowhere else; the second one is 0.28's."""


def plugins_variable(environment: Mapping[str, str]) -> str:
    """What ``VLLM_PLUGINS`` has to be: everything that loads without us, and ``gkt``, which has to be named."""
    given = environment.get("VLLM_PLUGINS")
    if given is None:
        names = sorted({point.name for group in _BY_DEFAULT for point in entry_points(group=group)})
    else:
        names = [name for name in given.split(",") if name]
    return ",".join([*(name for name in names if name != "gkt"), "gkt"])


def uses_rust(environment: Mapping[str, str]) -> bool:
    """Whether vLLM's frontend will be the one that is not written in Python."""
    return environment.get(RUST_FRONTEND, "0") not in ("", "0")


def unloaded(environment: Mapping[str, str]) -> str | None:
    """Why a server of vLLM's would not load the plugin of its front door, and what to do; None: it will."""
    if uses_rust(environment):
        return f"vLLM's Rust frontend loads no plugins; unset {RUST_FRONTEND}"
    if any(name in sys.modules for name in _GRPC):
        return "vLLM's gRPC server loads no plugin of a front door; leave out --grpc"
    if "gkt" in environment.get("VLLM_PLUGINS", "").split(","):
        return None
    return (
        "vLLM loads the plugin for that only where it is named; start it with VLLM_PLUGINS="
        f"{plugins_variable(environment)}, which 'gkt vllm serve' does by itself"
    )


def command(section: GktSection, arguments: Sequence[str]) -> list[str]:
    """The command that starts the server.

    :param arguments: vLLM's own: the model, and options.
    :raises ConfigError: they bring a section already.
    """
    written = _with_section(list(arguments), section.model_dump(exclude_unset=True))
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *written]


def _with_section(arguments: list[str], section: Mapping[str, str]) -> list[str]:
    """``arguments`` with the section in the JSON that they bring, or their YAML file does; where neither does, with
    keys of its own, in whose favour vLLM drops any JSON."""
    keyed = False
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")  # as vLLM reads it
        if name.startswith(f"{_OPTION}.gkt"):
            raise ConfigError(_TWICE)
        keyed = keyed or name.startswith(f"{_OPTION}.")
        if name == _OPTION:
            after = at + (1 if equals else 2)
            given = _table(value if equals else "".join(arguments[at + 1 : after]))
            if "gkt" in given:
                raise ConfigError(_TWICE)
            return [*arguments[:at], _OPTION, json.dumps({**given, "gkt": section}), *arguments[after:]]
    if not keyed and (in_file := _of_file(arguments)):
        if "gkt" in in_file:
            raise ConfigError(_TWICE)
        return [*arguments, _OPTION, json.dumps({**in_file, "gkt": section})]
    return [*arguments, *(word for key, value in section.items() for word in (f"{_OPTION}.gkt.{key}", value))]


def _of_file(arguments: list[str]) -> Mapping[str, Any]:
    """``additional_config`` in the YAML file that ``--config`` names. vLLM says itself what is wrong with the file."""
    if "--config" not in arguments[:-1]:
        return {}
    yaml = importlib.import_module("yaml")  # which vLLM brings
    try:
        options = yaml.safe_load(Path(arguments[arguments.index("--config") + 1]).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    given = options.items() if isinstance(options, Mapping) else ()
    found = {str(name).replace("_", "-"): value for name, value in given}.get(_OPTION.removeprefix("--"))
    return found if isinstance(found, Mapping) else {}


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
