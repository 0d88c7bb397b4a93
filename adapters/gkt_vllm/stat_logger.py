"""Acceptance on vLLM's metrics page, in the words that are ours everywhere.

vLLM makes one logger per engine in each of its API servers, from the class that the entry point names; all of an
engine's drafts are told to one of them, so that the sum over the servers, which the page shows, is the engine's.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from gkt_vllm import has_section
from gkt_vllm.counters import counts_of_step

__all__ = ["AcceptanceCounters", "acceptance_counters"]

_log = logging.getLogger("vllm.gkt")

_LABELS = ("model_name", "engine", "verifier")
_HELP = {
    "blocks": "Target calls that verified at least one drafted token, per request.",
    "drafted": "Tokens that the draft proposed.",
    "tested": "Of them, up to and including the first rejection of their block.",
    "accepted": "Of them, kept by the verifier.",
    "bonus": "Extra tokens of the target, from blocks that were accepted whole.",
}
"""Field of ``Counts`` → help."""


class AcceptanceCounters:
    """``gkt_speculation_…_total`` of one engine."""

    def __init__(self, model: str, engine_index: int, verifier: str, registry: CollectorRegistry | None = None) -> None:
        """``verifier``: ``exact``, or ``lenient`` where any request may be verified so."""
        labels = (model, str(engine_index), verifier)
        self._counters = {name: family.labels(*labels) for name, family in _families(registry or REGISTRY).items()}

    def observe(self, stats: Any) -> None:
        """Count one step: vLLM's ``SpecDecodingStats``."""
        counts = counts_of_step(stats)
        for name, counter in self._counters.items():
            counter.inc(getattr(counts, name))


def acceptance_counters(vllm_config: Any, engine_index: int) -> AcceptanceCounters | None:
    """None where nothing is to be counted: no ``gkt`` section, or no drafts."""
    if not has_section(vllm_config.additional_config) or vllm_config.speculative_config is None:
        return None
    from gkt_vllm.section import read_section

    section = read_section(vllm_config.additional_config)
    assert section is not None
    lenient = section.workers is not None and section.workers.leniency is not None
    model = vllm_config.model_config.served_model_name
    return AcceptanceCounters(model, engine_index, "lenient" if lenient else "exact")


@cache
def _families(registry: CollectorRegistry) -> dict[str, Counter]:
    """Made once in a process, which may have several engines."""
    return {name: Counter(_name(name), text, _LABELS, registry=registry) for name, text in _HELP.items()}


def _name(field: str) -> str:
    return f"gkt_speculation_{field}_total" if field == "blocks" else f"gkt_speculation_{field}_tokens_total"


def __getattr__(name: str) -> Any:
    """``GktStatLogger``, what vLLM's entry point names: a class of vLLM's, which is made where vLLM asks for it."""
    if name != "GktStatLogger":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _logger_class()


@cache
def _logger_class() -> type:
    from vllm.v1.metrics.loggers import StatLoggerBase

    class GktStatLogger(StatLoggerBase):  # type: ignore[misc]  # vLLM has no types here
        """Without a section, or without drafts, it does nothing."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            self._counters = acceptance_counters(vllm_config, engine_index)

        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            """After every step. What fails here would end vLLM's own loop, so that it stops counting instead."""
            if self._counters is None:
                return
            stats = getattr(scheduler_stats, "spec_decoding_stats", None)
            if stats is None:
                return
            try:
                self._counters.observe(stats)
            except Exception:  # noqa: BLE001 - see above
                _log.exception("gkt: acceptance is not counted any more; report this with the version of vLLM")
                self._counters = None

        def log_engine_initialized(self) -> None:
            """Nothing to say."""

    return GktStatLogger
