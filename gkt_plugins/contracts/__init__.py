"""What hooks exchange: plain data, and the protocols that factories build.

Two rules keep third-party plugins working across releases: later versions add to this package and never bend it, and
nothing here imports an engine. Tensor types are named for type checkers only.
"""

from __future__ import annotations

from gkt_plugins.contracts._accounting import AHEAD, GUIDANCE_CACHE, Price, PriceSource, Role, TraceEvent, UsageRecord
from gkt_plugins.contracts._engines import (
    Call,
    Capabilities,
    Completion,
    Delta,
    Engine,
    Examinable,
    Finding,
    FinishReason,
    Forwarder,
    Message,
    Preparable,
    Prompt,
    Reachable,
    Sampling,
    Usage,
)
from gkt_plugins.contracts._export import Exported, Exporter, ExportRequest
from gkt_plugins.contracts._factories import CONTRACT_VERSION, BuildContext, Factory, Options
from gkt_plugins.contracts._guidance import CuttingPolicy, LengthPolicy
from gkt_plugins.contracts._speculation import (
    DecodeState,
    Drafter,
    LeniencyRule,
    Noise,
    Proposal,
    TargetScores,
    Verdict,
    Verifier,
)

__all__ = [
    "AHEAD",
    "CONTRACT_VERSION",
    "GUIDANCE_CACHE",
    "BuildContext",
    "Call",
    "Capabilities",
    "Completion",
    "CuttingPolicy",
    "DecodeState",
    "Delta",
    "Drafter",
    "Engine",
    "Examinable",
    "ExportRequest",
    "Exported",
    "Exporter",
    "Factory",
    "Finding",
    "FinishReason",
    "Forwarder",
    "LengthPolicy",
    "LeniencyRule",
    "Message",
    "Noise",
    "Options",
    "Preparable",
    "Price",
    "PriceSource",
    "Prompt",
    "Proposal",
    "Reachable",
    "Role",
    "Sampling",
    "TargetScores",
    "TraceEvent",
    "Usage",
    "UsageRecord",
    "Verdict",
    "Verifier",
]
