"""Where the packaged tiny models are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

__all__ = ["MODEL_NAMES", "ModelName", "model_dir"]

ModelName = Literal["teacher", "student", "draft", "distilled"]

MODEL_NAMES: tuple[ModelName, ...] = get_args(ModelName)


def model_dir(name: ModelName) -> Path:
    """The folder of a packaged model, as ``from_pretrained`` takes it.

    "teacher" is also the speculation target; "student" has a vocabulary of its own; "draft" has the teacher's, and
    "distilled" is the draft after DistillSpec against the teacher.

    :raises ValueError: no such model.
    """
    if name not in MODEL_NAMES:
        raise ValueError(f"unknown demo model {name!r}; known: {', '.join(MODEL_NAMES)}")
    return Path(__file__).parent / "models" / name
