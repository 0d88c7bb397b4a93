"""Which pipeline guides a vLLM server. Its student is the server itself."""

from __future__ import annotations

from gkt_plugins.config import Config
from gkt_plugins.errors import ConfigError
from gkt_vllm.section import GktSection

__all__ = ["ADAPTER", "guided_pipeline"]

ADAPTER = "vllm"


def guided_pipeline(config: Config, section: GktSection) -> str | None:
    """The pipeline that guides this server; None where there is none, or it has no teacher.

    :raises ConfigError: the section names one that does not exist, or one whose student is another engine.
    """
    name = section.pipeline
    pipeline = config.pipelines.get(name)
    if pipeline is None:
        if "pipeline" in section.model_fields_set:
            known = ", ".join(sorted(config.pipelines)) or "none"
            raise ConfigError(f"additional_config.gkt.pipeline must name a pipeline, got {name!r}; there are: {known}")
        return None
    if pipeline.teacher is None:
        return None
    adapter = config.engines[pipeline.student].adapter
    if adapter != ADAPTER:
        raise ConfigError(
            f"pipelines.{name}.student must be this server, an engine with adapter = 'vllm', and "
            f"{pipeline.student!r} has adapter = {adapter!r}"
        )
    if config.engines[pipeline.teacher].adapter == ADAPTER:
        raise ConfigError(
            f"pipelines.{name}.teacher cannot be this server too; give {pipeline.teacher!r} another adapter, such as "
            "'openai'"
        )
    return name
