"""What ships in the core, registered through the same door as everybody else's plugins."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_plugins.accounting.factories import PRICE_SOURCES
from gkt_plugins.contracts import CuttingPolicy, Drafter, Factory, LengthPolicy, LeniencyRule, PriceSource, Verifier
from gkt_plugins.guidance.factories import CUTTING_POLICIES, LENGTH_POLICIES
from gkt_plugins.hookspecs import hookimpl
from gkt_plugins.speculation.factories import DRAFTERS, LENIENCY_RULES, VERIFIERS

__all__ = ["GKT_CONTRACT"]

GKT_CONTRACT = 1


@hookimpl
def gkt_length_policies() -> Mapping[str, Factory[LengthPolicy]]:
    """How much the teacher writes."""
    return LENGTH_POLICIES


@hookimpl
def gkt_cutting_policies() -> Mapping[str, Factory[CuttingPolicy]]:
    """How much of it is handed over."""
    return CUTTING_POLICIES


@hookimpl
def gkt_drafters() -> Mapping[str, Factory[Drafter]]:
    """Who proposes."""
    return DRAFTERS


@hookimpl
def gkt_verifiers() -> Mapping[str, Factory[Verifier]]:
    """Who decides."""
    return VERIFIERS


@hookimpl
def gkt_leniency_rules() -> Mapping[str, Factory[LeniencyRule]]:
    """What a lenient verifier accepts."""
    return LENIENCY_RULES


@hookimpl
def gkt_price_sources() -> Mapping[str, Factory[PriceSource]]:
    """What calls cost."""
    return PRICE_SOURCES
