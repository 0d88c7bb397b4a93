"""What training said a draft is worth, held against what the decode loop counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkt_plugins.distill.acceptance_report import AcceptanceReport, estimate_json
from gkt_plugins.errors import ConfigError
from gkt_plugins.evaluation.statistics import Estimate

__all__ = ["TrainingCheck", "TrainingFigure", "read_training_figure"]

_FILE = "provenance.json"


@dataclass(frozen=True, slots=True)
class TrainingFigure:
    """What a draft's ``provenance.json`` says of it."""

    temperature: float
    acceptance_tv: Estimate
    """Of the weights as they were written, on held-out prompts."""

    def check(self, reports: Sequence[AcceptanceReport]) -> TrainingCheck | None:
        """Against the report of the same temperature; None where there is none."""
        for report in reports:
            if report.temperature == self.temperature:
                return TrainingCheck(self, report.loop_acceptance)
        return None


@dataclass(frozen=True, slots=True)
class TrainingCheck:
    """One figure of training and the decode loop's own."""

    figure: TrainingFigure
    counted: Estimate
    """accepted / tested in the decode loop."""

    @property
    def agrees(self) -> bool:
        """The two intervals have something in common."""
        return self.counted.low <= self.figure.acceptance_tv.high and self.figure.acceptance_tv.low <= self.counted.high

    def sentence(self) -> str:
        """Both figures, and whether they agree."""
        both = (
            f"At temperature {self.figure.temperature:g} training gave acceptance {_shown(self.figure.acceptance_tv)}; "
            f"the decode loop counts {_shown(self.counted)}"
        )
        if self.agrees:
            return f"{both}: they agree."
        return (
            f"{both}: they differ by more than their intervals, so prompts, target or options are not those "
            "of the training."
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "temperature": self.figure.temperature,
            "training": estimate_json(self.figure.acceptance_tv),
            "decode_loop": estimate_json(self.counted),
            "agrees": self.agrees,
        }


def read_training_figure(folder: Path) -> TrainingFigure | None:
    """What the draft in ``folder`` reached in training; None for a draft that says nothing.

    :raises ConfigError: there is a ``provenance.json`` that cannot be read.
    """
    path = folder / _FILE
    if not path.is_file():
        return None
    try:
        acceptance = json.loads(path.read_text(encoding="utf-8"))["acceptance"]
        after = acceptance["after"]
        estimate = Estimate(float(after["value"]), float(after["low"]), float(after["high"]), int(after["n"]))
        return TrainingFigure(float(acceptance["temperature"]), estimate)
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise ConfigError(f"{path} does not say what the draft reached in training: {exc!r}; remove it") from exc


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
