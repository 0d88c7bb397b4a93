"""What ships in the core, registered through the same door as everybody else's plugins."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from gkt_plugins.contracts import (
    CuttingPolicy,
    Drafter,
    Factory,
    LengthPolicy,
    LeniencyRule,
    PriceSource,
    Verifier,
)
from gkt_plugins.hookspecs import hookimpl

__all__ = ["GKT_CONTRACT"]

GKT_CONTRACT = 1


def _room(module: str, name: str) -> Mapping[str, Factory[Any]]:
    try:
        provided: Mapping[str, Factory[Any]] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return {}
    return provided


@hookimpl
def gkt_length_policies() -> Mapping[str, Factory[LengthPolicy]]:
    """``fixed``."""
    return _room("gkt_plugins.guidance.factories", "LENGTH_POLICIES")


@hookimpl
def gkt_cutting_policies() -> Mapping[str, Factory[CuttingPolicy]]:
    """``word``, ``sentence``, ``raw``."""
    return _room("gkt_plugins.guidance.factories", "CUTTING_POLICIES")


@hookimpl
def gkt_drafters() -> Mapping[str, Factory[Drafter]]:
    """``model``, ``prompt_lookup``."""
    return _room("gkt_plugins.speculation.factories", "DRAFTERS")


@hookimpl
def gkt_verifiers() -> Mapping[str, Factory[Verifier]]:
    """``exact``, ``lenient``."""
    return _room("gkt_plugins.speculation.factories", "VERIFIERS")


@hookimpl
def gkt_leniency_rules() -> Mapping[str, Factory[LeniencyRule]]:
    """``linear``, ``square``, ``exponential``, ``capped``."""
    return _room("gkt_plugins.speculation.factories", "LENIENCY_RULES")


@hookimpl
def gkt_price_sources() -> Mapping[str, Factory[PriceSource]]:
    """``config``."""
    return _room("gkt_plugins.accounting.factories", "PRICE_SOURCES")
