"""How to start vLLM so that its plugins load: its environment, and its command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from gkt_plugins.errors import ConfigError

__all__ = ["command", "plugins_variable"]

_BY_DEFAULT = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
"""Groups that vLLM loads whole where ``VLLM_PLUGINS`` is not set; endpoint plugins are the exception."""

_TWICE = "gkt vllm serve writes additional_config.gkt itself; leave it out, or start vLLM directly"


def plugins_variable(environment: Mapping[str, str]) -> str:
    """What ``VLLM_PLUGINS`` has to be: everything that loads without us, and ``gkt``, which has to be named."""
    given = environment.get("VLLM_PLUGINS")
    if given is None:
        names = sorted({point.name for group in _BY_DEFAULT for point in entry_points(group=group)})
    else:
        names = [name for name in given.split(",") if name]
    return ",".join([*(name for name in names if name != "gkt"), "gkt"])


def command(config: Path, pipeline: str | None, arguments: Sequence[str]) -> list[str]:
    """The command that starts the server.

    :param arguments: vLLM's own: the model, and options.
    :raises ConfigError: they bring a section already.
    """
    if any(argument.startswith("--additional-config.gkt") for argument in arguments):
        raise ConfigError(_TWICE)
    section = {"config": str(config.resolve())} | ({"pipeline": pipeline} if pipeline else {})
    dotted = [text for key, value in section.items() for text in (f"--additional-config.gkt.{key}", value)]
    if "--additional-config" in arguments:  # vLLM merges dotted keys into nothing else
        at = list(arguments).index("--additional-config") + 1
        try:
            given = json.loads(arguments[at])
        except (IndexError, ValueError) as exc:
            raise ConfigError(f"--additional-config must be followed by a JSON object: {exc}") from exc
        if "gkt" in given:
            raise ConfigError(
                "gkt vllm serve writes additional_config.gkt itself; leave it out, or start vLLM directly"
            )
        merged = json.dumps(given | {"gkt": section})
        own = [*arguments[:at], merged, *arguments[at + 1 :]]
    else:
        own = [*arguments, *dotted]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *own]
