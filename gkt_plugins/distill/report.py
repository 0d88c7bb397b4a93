"""What a distillation tells: on the way, and at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gkt_plugins.evaluation.statistics import Estimate

__all__ = ["DistillReport", "Progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    step: int
    steps: int
    loss: float | None
    """Mean of the steps since the last report, in the divergence's unit."""
    acceptance: Estimate | None
    """The last measurement on held-out prompts."""
    tokens: int
    """Answer tokens trained on so far, by all processes."""


@dataclass(frozen=True, slots=True)
class DistillReport:
    """What came of it. Losses and measurements of a resumed run are those of all its parts."""

    output: Path
    """The draft, as ``from_pretrained`` takes it."""
    steps: int
    best_step: int
    """Whose weights were written; 0 where no step was better than the draft was to begin with."""
    before: Estimate
    """``acceptance_tv`` on held-out prompts at the serving temperature, before the first step."""
    after: Estimate
    """Of the weights that were written."""
    gamma: int
    efficiency_before: Estimate
    """Block efficiency with ``gamma`` drafted tokens on the same prompts, counted by the decode loop."""
    efficiency_after: Estimate
    losses: tuple[tuple[int, float], ...]
    """Step and mean loss since the last one."""
    acceptance: tuple[tuple[int, Estimate], ...]
    """Step and measurement."""
    tokens: int
    """Answer tokens trained on, by all processes, each counted once."""
    seconds: float
    """Inside training, measurements and checkpoints included; of the last part of a resumed run."""
    skipped: int
    """Batches without a token to train on."""
    notes: tuple[str, ...] = ()
    """What the figures do not say by themselves, one sentence each."""
