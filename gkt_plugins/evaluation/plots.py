"""Pictures of results, as PNG files. Needs matplotlib (the ``demo`` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gkt_plugins.errors import require
from gkt_plugins.evaluation.statistics import Estimate

__all__ = ["FrontierPoint", "plot_curve", "plot_frontier"]

TEACHER, STUDENT, GUIDED = "#b4532a", "#2f6f9f", "#3c8d4f"


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One way of answering: how often it is right, and what an answer costs."""

    label: str
    kind: str
    """``teacher``, ``student`` or ``guided``; guided points are joined in order of cost."""
    accuracy: Estimate
    cost: float
    """Per answer, in any unit that all points share."""


def plot_frontier(points: Sequence[FrontierPoint], path: Path, *, title: str, cost_label: str) -> None:
    """Accuracy with its 95 % interval against cost per answer, written to ``path`` as PNG.

    :raises MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="demo")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    colours = {"teacher": TEACHER, "student": STUDENT, "guided": GUIDED}
    guided = sorted((point for point in points if point.kind == "guided"), key=lambda point: point.cost)
    axes.plot([p.cost for p in guided], [p.accuracy.value for p in guided], color=GUIDED, alpha=0.4, linewidth=1.5)
    for point in points:
        estimate = point.accuracy
        axes.errorbar(
            point.cost,
            estimate.value,
            yerr=[[estimate.value - estimate.low], [estimate.high - estimate.value]],
            fmt="o",
            markersize=7,
            capsize=3,
            color=colours[point.kind],
        )
        above = point in guided[::2]  # neighbours on the line do not write over each other
        axes.annotate(
            point.label,
            (point.cost, estimate.high if above else estimate.low),
            textcoords="offset points",
            xytext=(0, 5 if above else -5),
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
        )
    axes.set_xlim(left=0, right=max(point.cost for point in points) * 1.18)
    axes.set_ylim(0, 1.1)
    axes.set_xlabel(cost_label)
    axes.set_ylabel("share of exact answers")
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def plot_curve(points: Sequence[tuple[float, Estimate]], path: Path, *, title: str, x_label: str, y_label: str) -> None:
    """Estimates over x, with their 95 % intervals as a band, written to ``path`` as PNG.

    :raises MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="demo")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    x = [place for place, _ in points]
    axes.fill_between(x, [e.low for _, e in points], [e.high for _, e in points], color=GUIDED, alpha=0.15, linewidth=0)
    axes.plot(x, [e.value for _, e in points], "o-", color=GUIDED, markersize=4)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
