"""Who looks on while a draft trains."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from gkt_plugins.distill.options import DistillOptions
from gkt_plugins.distill.report import Progress
from gkt_plugins.distill.trainer import DraftTrainer

__all__ = ["Observer", "tensorboard"]


def tensorboard(options: DistillOptions) -> TrainerCallback:
    """Curves of loss, learning rate and acceptance under ``OUTPUT/runs``, written by the first process."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    first = int(os.environ.get("RANK", "0")) == 0
    return TensorBoardCallback(SummaryWriter(str(options.output_dir / "runs")) if first else None)  # type: ignore[no-untyped-call]


class Observer(TrainerCallback):
    """Tells somebody outside how far it is."""

    def __init__(self, trainer: DraftTrainer, observe: Callable[[Progress], None]) -> None:
        self._trainer = trainer
        self._observe = observe
        self._loss: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._loss = (logs or {}).get("loss", self._loss)
        self._tell(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state)

    def _tell(self, state: Any) -> None:
        measured = self._trainer.acceptance
        self._observe(
            Progress(
                state.global_step,
                state.max_steps,
                self._loss,
                measured[-1][1] if measured else None,
                self._trainer.tokens,
            )
        )
