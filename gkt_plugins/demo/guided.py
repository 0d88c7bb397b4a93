"""First half of the demo: student alone, teacher alone, and guidance of several lengths on the same problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkt_plugins.config import load_config
from gkt_plugins.contracts import Role, Sampling
from gkt_plugins.demo.problems import Problem
from gkt_plugins.demo.sides import Side, answer_problems
from gkt_plugins.evaluation.plots import FrontierPoint
from gkt_plugins.guidance.batch import BatchOptions
from gkt_plugins.guidance.pipeline import Pipeline

__all__ = ["CONFIG_FILE", "GUIDANCE_TOKENS", "Way", "run_ways"]

CONFIG_FILE = Path(__file__).parent / "gkt.toml"
GUIDANCE_TOKENS = (8, 16, 24, 32)
MAX_TOKENS = 384
_BATCHES = BatchOptions(teacher_batch=128, student_batch=128, in_flight=256)


@dataclass(frozen=True)
class Way:
    """A way of answering and how it did."""

    label: str
    kind: str
    """``student``, ``teacher`` or ``guided``."""
    side: Side

    @property
    def cost(self) -> float:
        """Currency units per thousand answers."""
        return sum(self.side.costs) / len(self.side.costs) * 1000 / 1e9

    def point(self) -> FrontierPoint:
        return FrontierPoint(self.label.removeprefix("guided, "), self.kind, self.side.accuracy, self.cost)

    def as_json(self) -> dict[str, Any]:
        accuracy = self.side.accuracy
        roles: tuple[Role, ...] = ("teacher", "student") if self.kind == "guided" else ("student",)
        return {
            "way": self.label,
            "problems": accuracy.n,
            "accuracy": round(accuracy.value, 4),
            "accuracy_interval": [round(accuracy.low, 4), round(accuracy.high, 4)],
            "seconds": round(self.side.seconds, 2),
            "prompt_tokens": {role: sum(self.side.prompt_tokens(role)) for role in roles},
            "completion_tokens": {role: sum(self.side.completion_tokens(role)) for role in roles},
            "cost_per_1000_answers": round(self.cost, 5),
        }


async def run_ways(
    problems: Sequence[Problem], ledger: Path, *, on_start: Callable[[str], object], on_answer: Callable[[], object]
) -> list[Way]:
    """Answer ``problems`` in every way, greedily, through the pipelines of :data:`CONFIG_FILE`.

    :param ledger: SQLite file for the usage records, an absolute path.
    :param on_start: told the label of each way when it begins; ``on_answer``: called after each answer.
    """
    guided = [(f"guided, g={tokens}", "guided", "default", tokens) for tokens in GUIDANCE_TOKENS]
    done = []
    for label, kind, name, tokens in [
        ("student alone", "student", "student_alone", 0),
        *guided,
        ("teacher alone", "teacher", "teacher_alone", 0),
    ]:
        overrides = [f"pipelines.default.guidance.tokens={tokens}", f'ledger.url="sqlite:///{ledger}"']
        config = load_config(CONFIG_FILE, overrides=overrides)
        async with AsyncExitStack() as stack:
            pipeline = Pipeline.from_config(config, name=name)
            pipeline.batches = _BATCHES
            await stack.enter_async_context(pipeline)
            on_start(label)
            side = await answer_problems(pipeline, problems, Sampling(max_tokens=MAX_TOKENS), on_answer=on_answer)
        done.append(Way(label, kind, side))
    return done
