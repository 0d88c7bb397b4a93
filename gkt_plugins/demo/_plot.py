"""The curves of docs/results/demo-models as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from gkt_plugins.demo.models import MODEL_NAMES

__all__ = ["plot_curves"]


def plot_curves(results: Path) -> None:
    """Draw ``curves.png`` from the ``NAME.json`` files in ``results`` that exist."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(MODEL_NAMES)), MODEL_NAMES, strict=True):
        axes.set(title=name, xlabel="step", ylabel="held-out loss, nats per token", yscale="log")
        if (path := results / f"{name}.json").exists():
            curve = json.loads(path.read_text())
            for part in ("plan", "rest", "all"):
                axes.plot(curve["step"], curve[part], label=part)
            axes.legend()
    figure.savefig(results / "curves.png", dpi=110)
