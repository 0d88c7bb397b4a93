"""The pictures of docs/results/distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["plot_cells", "plot_leniency"]

_COLOURS = {"exact": "#444444", "no rule": "#444444", "linear": "#2f6f9f", "square": "#3c8d4f",
            "exponential": "#b4532a", "capped": "#8a5aa8"}  # fmt: skip


def plot_leniency(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against speed, and drift against speed; one column per temperature, one line per rule, labels are ε."""
    figure = Figure(figsize=(10.0, 7.0), dpi=150, layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, temperature in enumerate((0.0, 1.0)):
        here = [row for row in rows if row["temperature"] == temperature]
        exact = next(row for row in here if row["rule"] == "exact")
        for rule in dict.fromkeys(row["rule"] for row in here if row["rule"] != "exact"):
            line = [exact, *(row for row in here if row["rule"] == rule)]
            speed, style = [row["speed"] for row in line], {"color": _COLOURS[rule], "marker": "o", "markersize": 4}
            accuracy = [row["accuracy"] for row in line]
            below = [max(0.0, row["accuracy"] - row["accuracy_interval"][0]) for row in line]
            above = [max(0.0, row["accuracy_interval"][1] - row["accuracy"]) for row in line]
            axes[0, column].errorbar(
                speed, accuracy, yerr=[below, above], label=rule, capsize=2, linewidth=1.2, **style
            )
            axes[1, column].plot(speed, [row["drift"] for row in line], label=rule, linewidth=1.2, **style)
            for row in line[1:]:
                for axis, key in ((axes[0, column], "accuracy"), (axes[1, column], "drift")):
                    axis.annotate(f"{row['epsilon']:g}", (row["speed"], row[key]), textcoords="offset points",
                                  xytext=(4, 4), fontsize=7, color=_COLOURS[rule])  # fmt: skip
        axes[0, column].set_title(f"temperature {temperature:.0f}", fontsize=11, loc="left")
        axes[1, column].set_xlabel("speed against exact verification")
        for axis in axes[:, column]:
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("share of exact answers")
    axes[1, 0].set_ylabel("drift: mean total variation")
    axes[0, 1].legend(frameon=False, fontsize=9)
    figure.savefig(path)


def plot_cells(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Gain in block efficiency of every divergence × policy, a panel per temperature; what is no gain is grey."""
    divergences = list(dict.fromkeys(row["divergence"] for row in rows))
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    figure = Figure(figsize=(11.0, 3.8), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, key in zip(axes, ("t0", "t1"), strict=True):
        found = {(row["divergence"], row["policy"]): row for row in rows}
        grid = [[found[d, p][f"gain_{key}"] if (d, p) in found else 1.0 for p in policies] for d in divergences]
        span = max(0.02, *(abs(value - 1) for line in grid for value in line))
        axis.imshow(grid, cmap="RdYlGn", vmin=1 - span, vmax=1 + span, aspect="auto")
        for i, divergence in enumerate(divergences):
            for j, policy in enumerate(policies):
                row = found.get((divergence, policy))
                if row is None:
                    continue
                low, high = row[f"gain_{key}_interval"]
                sure = not low <= 1 <= high
                text = f"{row[f'gain_{key}']:.3f}\n{low:.2f} – {high:.2f}"
                dark = abs(row[f"gain_{key}"] - 1) > 0.6 * span
                colour = "white" if dark else "black" if sure else "#777777"
                axis.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
        axis.set_xticks(range(len(policies)), [policy.replace("_", "\n") for policy in policies], fontsize=8)
        axis.set_yticks(range(len(divergences)), divergences, fontsize=8)
        axis.set_title(f"temperature {key[1]}: block efficiency at γ = 7 against the undistilled draft", fontsize=9,
                       loc="left")  # fmt: skip
    figure.savefig(path)
