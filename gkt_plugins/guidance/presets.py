"""Generation settings of the GKT paper's own runs, by name.

The prompts are not part of them: they come from the user's file. The paper's scripts pass a temperature but do not ask
for sampling, so whether they sampled depends on the checkpoint's generation config. Each preset therefore exists twice,
greedy and ``-sampled``; a reproduction runs both and says which.

Source: the official code of GKT, arXiv:2405.19635 (guidance 40/30/20 and completion 300/100/100 tokens, teacher batch
10, student batch 1, temperature 0.8, top-p 0.9 for the teacher and 0.95 for the student).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gkt_plugins.guidance.batch import BatchOptions
from gkt_plugins.guidance.events import StageSampling

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True, slots=True)
class Preset:
    """One data set's settings."""

    guidance_tokens: int
    completion_tokens: int
    teacher: StageSampling
    student: StageSampling

    @property
    def max_tokens(self) -> int:
        """Bound of the whole answer."""
        return self.guidance_tokens + self.completion_tokens

    @property
    def batches(self) -> BatchOptions:
        return BatchOptions(teacher_batch=10, student_batch=1)


_GREEDY = StageSampling(temperature=0.0)
_SAMPLED_TEACHER = StageSampling(temperature=0.8, top_p=0.9)
_SAMPLED_STUDENT = StageSampling(temperature=0.8, top_p=0.95)

_TOKENS = {"gsm8k": (40, 300), "csqa": (30, 100), "aqua": (20, 100)}

PRESETS: Mapping[str, Preset] = {
    **{f"paper-{name}": Preset(g, rest, _GREEDY, _GREEDY) for name, (g, rest) in _TOKENS.items()},
    **{
        f"paper-{name}-sampled": Preset(g, rest, _SAMPLED_TEACHER, _SAMPLED_STUDENT)
        for name, (g, rest) in _TOKENS.items()
    },
}
