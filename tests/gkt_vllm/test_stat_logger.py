"""Acceptance on vLLM's metrics page, from what vLLM tells its loggers after each step."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import entry_points
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from gkt_vllm import stat_logger
from gkt_vllm.stat_logger import AcceptanceCounters

# Two blocks of 3 drafted tokens and one of 2: 3, 0 and 2 of them were accepted.
STATS = SimpleNamespace(
    num_drafts=3,
    num_draft_tokens=8,
    num_accepted_tokens=5,
    num_accepted_tokens_per_pos=[2, 2, 1],
    num_draft_tokens_per_pos=[3, 3, 2],
)
SECTION = {"gkt": {"config": "gkt.toml", "workers": {}}}
LENIENT = {"gkt": {"config": "gkt.toml", "workers": {"leniency": {"rule": "linear", "epsilon": 0.5, "least": 0.5}}}}


def shown(registry: CollectorRegistry, model: str, *, engine: str = "0", verifier: str = "exact") -> dict[str, Any]:
    """Field → value on the page, None where it is not there."""
    labels = {"model_name": model, "engine": engine, "verifier": verifier}
    names = ("blocks", "drafted_tokens", "tested_tokens", "accepted_tokens", "bonus_tokens")
    return {name: registry.get_sample_value(f"gkt_speculation_{name}_total", labels) for name in names}


@pytest.fixture
def logger_class(monkeypatch) -> Any:
    """What vLLM's entry point names, made on a base class that stands in for vLLM's."""
    module = ModuleType("vllm.v1.metrics.loggers")
    module.StatLoggerBase = type("StatLoggerBase", (), {})  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.v1", "vllm.v1.metrics"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    stat_logger._logger_class.cache_clear()
    yield stat_logger.GktStatLogger
    stat_logger._logger_class.cache_clear()


def engine(model: str, additional_config: Any = None, speculative_config: Any = "drafts") -> Any:
    """As much of vLLM's configuration as a logger looks at."""
    return SimpleNamespace(
        additional_config=additional_config,
        speculative_config=speculative_config,
        model_config=SimpleNamespace(served_model_name=model),
    )


def test_steps_add_up_under_the_names_of_our_counts():
    registry = CollectorRegistry()
    counters = AcceptanceCounters("large", 0, "exact", registry)
    counters.observe(STATS)
    counters.observe(STATS)
    # tested: 3 + 1 + 2, and 1 more, since nothing says that the block of 2 was the one that was accepted whole
    assert shown(registry, "large") == {
        "blocks": 6, "drafted_tokens": 16, "tested_tokens": 14, "accepted_tokens": 10, "bonus_tokens": 2,
    }  # fmt: skip


def test_engines_and_models_of_one_process_are_told_apart():
    registry = CollectorRegistry()
    for model, index in (("large", 0), ("large", 1), ("small", 0)):
        AcceptanceCounters(model, index, "exact", registry)
    AcceptanceCounters("large", 1, "exact", registry).observe(STATS)
    drafted = [shown(registry, model, engine=number)["drafted_tokens"] for model, number in
               (("large", "0"), ("large", "1"), ("small", "0"))]  # fmt: skip
    assert drafted == [0, 8, 0]


@pytest.mark.parametrize(("section", "verifier"), [(SECTION, "exact"), (LENIENT, "lenient")])
def test_vllms_logger_counts_a_step_and_says_whether_leniency_is_in_it(logger_class, section, verifier):
    logger = logger_class(engine(f"counted-{verifier}", section), 0)
    logger.log_engine_initialized()
    logger.record(SimpleNamespace(spec_decoding_stats=STATS), None, mm_cache_stats=None, engine_idx=0)
    logger.record(SimpleNamespace(spec_decoding_stats=None), None)
    logger.record(None, None)
    assert shown(REGISTRY, f"counted-{verifier}", verifier=verifier)["accepted_tokens"] == 5


@pytest.mark.parametrize(
    ("section", "drafts"), [(None, "drafts"), ({}, "drafts"), ({"other": {}}, "drafts"), (SECTION, None)]
)
def test_without_a_section_or_without_drafts_nothing_is_looked_at_and_no_series_appears(logger_class, section, drafts):
    logger = logger_class(engine("silent", section, drafts), 0)
    logger.record(SimpleNamespace(spec_decoding_stats=STATS), None)
    assert set(shown(REGISTRY, "silent").values()) == {None}


def test_statistics_of_another_form_end_the_counting_and_not_the_server(logger_class, caplog):
    logger = logger_class(engine("changed", SECTION), 0)
    with caplog.at_level(logging.ERROR, "vllm.gkt"):
        for _ in range(3):
            logger.record(SimpleNamespace(spec_decoding_stats=SimpleNamespace(num_drafts=3)), None)
    assert sum("not counted any more" in record.message for record in caplog.records) == 1
    assert shown(REGISTRY, "changed")["blocks"] == 0


def test_vllm_finds_the_logger_by_the_name_gkt_and_its_module_knows_no_other(logger_class):
    [point] = [point for point in entry_points(group="vllm.stat_logger_plugins") if point.name == "gkt"]
    assert point.load() is logger_class
    with pytest.raises(AttributeError, match="GktStatLog'"):
        stat_logger.GktStatLog  # noqa: B018
