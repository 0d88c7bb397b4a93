"""What a distillation needs of the model that it imitates, wherever that one is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gkt_plugins.distill.endpoint_loss import DraftWithScores
from gkt_plugins.distill.loss import DraftWithLoss
from gkt_plugins.distill.policies import DataPolicy
from gkt_plugins.distill.stream import Part
from gkt_plugins.evaluation.statistics import Estimate

__all__ = ["Imitated"]


def _nothing() -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Imitated:
    """A target, as the training loop sees it."""

    source: str
    """Folder, hub id, or name of the model at an endpoint."""
    module: Callable[[Any], DraftWithLoss | DraftWithScores]
    """The draft with its loss."""
    policy: Callable[[Any], DataPolicy]
    """Who answers, for this draft."""
    states: Callable[[Part], Any]
    """What the loss takes of the target at a part's picked positions."""
    measure: Callable[[Any], Estimate]
    """Acceptance of a draft on held-out answers."""
    efficiency: Callable[[Any], Estimate]
    """Block efficiency of a draft, likewise."""
    notes: Callable[[], tuple[str, ...]] = _nothing
    """What the figures do not say by themselves."""
