"""Keys of ``[engines.NAME]`` with ``adapter = "vllm"``. Importing this loads no engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkt_plugins.contracts import Options

__all__ = ["VllmOptions"]


class VllmOptions(Options):
    """vLLM: inside a vLLM server that server itself, elsewhere an engine in this process."""

    model: str
    """What vLLM loads, a folder or a name on the Hub; inside a server, its name for prices and records."""
    engine_args: Mapping[str, Any] = {}
    """More of vLLM's own arguments, such as `max_model_len`; inside a server they have no effect."""
