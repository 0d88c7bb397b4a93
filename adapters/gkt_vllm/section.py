"""The ``gkt`` section of vLLM's ``--additional-config``, and what workers are told of the file that it names.

vLLM prints the section when it starts and hashes it into its compilation cache's key, so that it holds no secret and
nothing that changes often: a path, a pipeline's name, and the few settings that workers need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from gkt_plugins._problems import validate_options
from gkt_plugins.errors import ConfigError
from gkt_vllm import SECTION, has_section

__all__ = ["DrafterSettings", "GktSection", "LeniencySettings", "WorkerSettings", "read_section"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LeniencySettings(_Frozen):
    """How much leniency there is, and by which rule."""

    rule: str
    rule_options: dict[str, Any] = {}
    epsilon: float
    """What a request gets that does not ask; 1 is lossless."""
    least: float
    """The smallest that a request may ask for."""


class DrafterSettings(_Frozen):
    """Our own drafter, which vLLM runs as a ``custom_class``."""

    drafter: str
    drafter_options: dict[str, Any]
    base_dir: str
    auto: bool
    """Draft lengths follow measured costs and acceptance, and drafts go off where they do not pay."""
    trace: dict[str, Any] | None = None
    """``[trace]``, as it was written: what is kept of the answers, to distil from."""


class WorkerSettings(_Frozen):
    """What workers are told: frozen when the frontend started, whatever becomes of the file."""

    leniency: LeniencySettings | None = None
    drafter: DrafterSettings | None = None


class GktSection(_Frozen):
    """``--additional-config '{"gkt": {…}}'``."""

    config: str
    """The file ``gkt.toml``; relative to where vLLM was started."""
    pipeline: str = "default"
    """Which ``[pipelines.NAME]`` guides; its student is this server."""
    workers: WorkerSettings | None = None
    """Written by the frontend, for the workers; not by hand."""


def read_section(additional_config: object) -> GktSection | None:
    """The section, or None where there is none.

    :raises ConfigError: it is there and wrong; names the key.
    """
    if not has_section(additional_config):
        return None
    table = additional_config[SECTION]
    if not isinstance(table, Mapping):
        raise ConfigError(
            f'additional_config.{SECTION} must be a table such as {{"config": "gkt.toml"}}, got {table!r}'
        )
    return validate_options(GktSection, table, subject=f"additional_config.{SECTION}")
