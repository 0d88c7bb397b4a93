"""In every worker: does what the frontend decided, and nothing where there is no ``gkt`` section."""

from __future__ import annotations

import logging
from typing import Any

from gkt_plugins.contracts import BuildContext, LeniencyRule
from gkt_plugins.plugins import load_plugins
from gkt_vllm.asked import Leniency
from gkt_vllm.patching import replaced
from gkt_vllm.section import LeniencySettings, read_section

__all__ = ["prepare"]

_log = logging.getLogger("vllm.gkt")


def prepare(vllm_config: Any) -> None:
    """Before the model runner of ``vllm_config`` is made: install what its section asks for.

    :raises BackendError: this vLLM is not one that was tried; the engine does not start.
    """
    section = read_section(vllm_config.additional_config)
    if section is None or section.workers is None:
        return
    if vllm_config.speculative_config is not None and not vllm_config.use_v2_model_runner:
        from gkt_vllm import cpu_empty, cpu_expand

        cpu_expand.mend()
        cpu_empty.mend()
    if section.workers.leniency is not None:
        _be_lenient(vllm_config, section.workers.leniency)
    if section.workers.drafter is not None:
        _draft(vllm_config)
    for where, why in replaced().items():
        _log.info("gkt: replaced %s, for %s", where, why)


def _draft(vllm_config: Any) -> None:
    if vllm_config.use_v2_model_runner:
        from gkt_vllm import own_drafter_v2

        own_drafter_v2.install()
    else:
        from gkt_vllm import own_drafter

        own_drafter.install()


def _be_lenient(vllm_config: Any, settings: LeniencySettings) -> None:
    leniency = Leniency(build_rule(settings), settings.epsilon, settings.least)
    if vllm_config.use_v2_model_runner:
        from gkt_vllm import leniency_v2

        leniency_v2.install()
        leniency_v2.bind(vllm_config, leniency)
    else:
        from gkt_vllm import leniency_v1

        leniency_v1.install()
        leniency_v1.bind(vllm_config, leniency)


def build_rule(settings: LeniencySettings) -> LeniencyRule:
    """The rule, ours or a third party's, by its name. :raises ConfigError: it is not installed here."""
    return load_plugins().leniency_rules().build(settings.rule, settings.rule_options, BuildContext())
