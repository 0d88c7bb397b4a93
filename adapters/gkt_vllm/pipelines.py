"""Which pipeline a vLLM server's requests belong to. Its student is the server itself."""

from __future__ import annotations

import json
from dataclasses import dataclass

from gkt_plugins.config import Config, load_config
from gkt_plugins.contracts import Role
from gkt_plugins.errors import ConfigError
from gkt_vllm.section import GktSection

__all__ = ["ADAPTER", "OwnPipeline", "guided_pipeline", "own_pipeline"]

ADAPTER = "vllm"


@dataclass(frozen=True)
class OwnPipeline:
    """What one server's requests are served by."""

    config: Config
    """With this pipeline alone."""
    name: str
    role: Role
    """What vLLM is on record as."""
    guides: bool
    """It has a teacher."""


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


def own_pipeline(config: Config, section: GktSection, model: str) -> OwnPipeline:
    """The pipeline of this server: the section's, where its student is this server; else one without a teacher, for
    the records alone, whose target is the one engine with ``adapter = "vllm"``, or ``model`` as vLLM serves it.

    :raises ConfigError: see :func:`guided_pipeline`.
    """
    guides = guided_pipeline(config, section) is not None
    pipeline = config.pipelines.get(section.pipeline)
    if pipeline is not None and config.engines[pipeline.student].adapter == ADAPTER:
        alone = config.model_copy(update={"pipelines": {section.pipeline: pipeline}})
        return OwnPipeline(alone, section.pipeline, "student", guides)
    known = [name for name, engine in config.engines.items() if engine.adapter == ADAPTER]
    name = known[0] if len(known) == 1 else ADAPTER
    made = load_config(
        text=f'[engines.{json.dumps(name)}]\nadapter = "vllm"\nmodel = {json.dumps(model, ensure_ascii=False)}\n'
        f"[pipelines.vllm]\nstudent = {json.dumps(name)}\n"
    )
    engines = {**config.engines, name: config.engines[name] if len(known) == 1 else made.engines[name]}
    alone = config.model_copy(update={"engines": engines, "pipelines": made.pipelines})
    return OwnPipeline(alone, "vllm", "target", guides=False)
