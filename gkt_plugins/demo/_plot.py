"""The curves of docs/results/demo-models as a picture."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["plot_curves"]

_MODELS = ("teacher", "student", "draft", "larger")


def plot_curves(results: Path) -> None:
    """Draw ``curves.png``, a panel for each model whose ``NAME.json`` is in ``results``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = [path for name in _MODELS if (path := results / f"{name}.json").exists()]
    figure = Figure(figsize=(3.7 * len(paths), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, path in zip(figure.subplots(1, len(paths), squeeze=False)[0], paths, strict=True):
        axes.set(title=path.stem, xlabel="step", ylabel="held-out loss, nats per token", yscale="log")
        curve = json.loads(path.read_text())
        for part in ("plan", "rest", "all"):
            axes.plot(curve["step"], curve[part], label=part)
        axes.legend()
    figure.savefig(results / "curves.png", dpi=110)
