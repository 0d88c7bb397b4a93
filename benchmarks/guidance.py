"""Guidance (GKT) on held-out word problems: accuracy, cost and time against teacher alone and student alone.

The teacher is the expensive model: 100–120 M parameters that compute what the packaged teacher computes. Accuracy and
token counts therefore come from the packaged one, times from the expensive one; both through ``gkt.toml`` pipelines.
The student costs a tenth of the teacher per token, output four times input. The guidance length is chosen on problems
that are not reported on.

- ``cost_ratio``               guided / teacher alone, money, same problems
- ``cost_ratio_long_prompt``   the same with a prompt of ten times the answer: both models read it, so guidance loses
- ``speedup_batch1_teacher``   time per problem: teacher alone at batch 1 / guided (the paper's kind of comparison)
- ``speedup_batched_teacher``  time per problem: teacher alone, batched as in guidance / guided (the honest one)
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks._models import describe, expensive_target, held_out, tokenizer
from benchmarks._report import Report, arguments
from gkt_plugins.config import load_config
from gkt_plugins.contracts import Sampling
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.sides import Side, answer_problems
from gkt_plugins.evaluation.statistics import mean_estimate, ratio_estimate
from gkt_plugins.guidance.pipeline import Pipeline

MAX_TOKENS = 384
BATCH = 24
TURNS = 7
GUIDANCE = (8, 12, 16, 20, 24, 28, 32, 40)
GREEDY = Sampling(max_tokens=MAX_TOKENS)
SAMPLED = Sampling(max_tokens=MAX_TOKENS, temperature=0.8, top_p=0.95)
CHOOSING_SEEDS = 5_000_000
"""First seed of the problems on which the guidance length is chosen."""

TEACHER_PRICE = {"input": 1.0, "output": 4.0}
STUDENT_PRICE = {"input": 0.1, "output": 0.4}

CONFIG = """
[engines.teacher]
adapter = "transformers"
model = "{teacher}"
dtype = "float32"
max_batch = {batch}
[engines.student]
adapter = "transformers"
model = "{student}"
dtype = "float32"
max_batch = {batch}
[prices.teacher]
input_per_million = "1.00"
output_per_million = "4.00"
[prices.student]
input_per_million = "0.10"
output_per_million = "0.40"
[pipelines.teacher_alone]
student = "teacher"
[pipelines.student_alone]
student = "student"
[pipelines.guided]
teacher = "teacher"
student = "student"
[pipelines.guided.guidance]
tokens = {tokens}
[ledger]
url = "sqlite:///{folder}/ledger.db"
"""


class Pipelines:
    """Pipelines of one configuration file, opened when first used."""

    def __init__(self, stack: AsyncExitStack, folder: Path, teacher: Path, batch: int) -> None:
        self._stack, self._folder, self._teacher, self._batch = stack, folder, teacher, batch
        self._open: dict[tuple[str, int], Pipeline] = {}

    async def get(self, name: str, tokens: int = 0) -> Pipeline:
        if (name, tokens) not in self._open:
            text = CONFIG.format(
                teacher=self._teacher,
                student=model_dir("student"),
                batch=self._batch,
                tokens=tokens,
                folder=self._folder,
            )
            pipeline = Pipeline.from_config(load_config(text=text), name=name)
            pipeline.batches = type(pipeline.batches)(
                teacher_batch=self._batch, student_batch=4 * self._batch, in_flight=8 * self._batch
            )
            self._open[name, tokens] = await self._stack.enter_async_context(pipeline)
        return self._open[name, tokens]


async def choose_length(pipelines: Pipelines, count: int) -> tuple[int, dict[int, float]]:
    """The shortest guidance whose accuracy is within a point of the best, on problems kept for choosing."""
    problems = held_out(count, first=CHOOSING_SEEDS)
    accuracy = {}
    for tokens in GUIDANCE:
        side = await answer_problems(await pipelines.get("guided", tokens), problems, GREEDY)
        accuracy[tokens] = side.accuracy.value
    best = max(accuracy.values())
    return min(tokens for tokens, value in accuracy.items() if value >= best - 0.01), accuracy


def long_prompt_ratio(count: int, guided: Side, alone: Side) -> tuple[float, int]:
    """Cost ratio with worked examples before each question until the prompt is ten answers long; its mean tokens.

    Prompts are really tokenized, the answers are those of the ordinary prompts: what is shown is the price of reading.
    """
    teacher, student = tokenizer("teacher"), tokenizer("student")
    guided_cost = alone_cost = 0.0
    lengths = []
    examples = held_out(200, first=2 * CHOOSING_SEEDS)
    for index in range(count):
        written = alone.completion_tokens("student")[index]
        shots = ""
        used = 0
        while len(teacher(shots)["input_ids"]) < 10 * written:
            shots += f"{examples[used % 200].question}\n{examples[used % 200].answer}\n\n"
            used += 1
        more_teacher, more_student = len(teacher(shots)["input_ids"]), len(student(shots)["input_ids"])
        guided_cost += guided.costs[index] / 1e3 + more_teacher * TEACHER_PRICE["input"]
        guided_cost += more_student * STUDENT_PRICE["input"]
        alone_cost += alone.costs[index] / 1e3 + more_teacher * TEACHER_PRICE["input"]
        lengths.append(more_teacher + alone.prompt_tokens("student")[index])
    return guided_cost / alone_cost, round(sum(lengths) / len(lengths))


async def accuracy_and_cost(report: Report, folder: Path, quick: bool) -> int:
    """Everything that does not depend on time; returns the guidance length."""
    problems = held_out(300 if quick else 600)
    async with AsyncExitStack() as stack:
        pipelines = Pipelines(stack, folder, model_dir("teacher"), BATCH)
        tokens, by_length = await choose_length(pipelines, 150 if quick else 300)
        report.setup.update(
            problems=len(problems),
            accuracy_by_guidance_tokens_when_choosing={str(key): round(value, 4) for key, value in by_length.items()},
        )
        for suffix, sampling in (("", GREEDY), ("_sampled", SAMPLED)):
            sides = {
                name: await answer_problems(await pipelines.get(name, tokens), problems, sampling)
                for name in ("student_alone", "teacher_alone", "guided")
            }
            student, teacher, guided = (sides[name] for name in ("student_alone", "teacher_alone", "guided"))
            report.put_estimate(f"student_accuracy{suffix}", student.accuracy)
            report.put_estimate(f"teacher_accuracy{suffix}", teacher.accuracy)
            report.put_estimate(f"guided_accuracy{suffix}", guided.accuracy)
            gain = [float(g) - float(s) for g, s in zip(guided.hits, student.hits, strict=True)]
            report.put_estimate(f"gain_over_student{suffix}", mean_estimate(gain), at_least=0.1418)
            kept = ratio_estimate([float(hit) for hit in guided.hits], [float(hit) for hit in teacher.hits])
            report.put_estimate(f"share_of_teacher_accuracy{suffix}", kept, at_least=0.95)
            report.put_estimate(f"cost_ratio{suffix}", ratio_estimate(guided.costs, teacher.costs))
            report.goal(f"cost_ratio{suffix}", "<=", 0.52)
            if not suffix:
                report.put("guidance_tokens", tokens)
                report.put("prompt_tokens", mean_estimate(teacher.prompt_tokens("student")).value)
                report.put("answer_tokens", mean_estimate(teacher.completion_tokens("student")).value)
                ratio, length = long_prompt_ratio(60, guided, teacher)
                report.put("cost_ratio_long_prompt", ratio)
                report.put("long_prompt_tokens", length)
    return tokens


async def times(report: Report, folder: Path, tokens: int, quick: bool) -> None:
    """Seconds per problem with the expensive teacher, all sides of a turn on the same problems."""
    large = expensive_target()
    report.setup.update(describe(large, "teacher"), batch=BATCH, turns=TURNS, max_tokens=MAX_TOKENS)
    teacher = folder / "teacher"
    large.save_pretrained(teacher)
    tokenizer("teacher").save_pretrained(teacher)
    del large
    alone_at_1 = 2 if quick else BATCH // 2
    report.setup.update(problems_per_turn=2 * BATCH if not quick else BATCH, problems_per_turn_at_batch_1=alone_at_1)
    seconds: dict[str, list[float]] = {"batch1": [], "batched": [], "guided": []}
    async with AsyncExitStack() as stack:
        wide, single = Pipelines(stack, folder, teacher, BATCH), Pipelines(stack, folder, teacher, 1)
        sides = {
            "batch1": (await single.get("teacher_alone"), alone_at_1),
            "batched": (await wide.get("teacher_alone"), report.setup["problems_per_turn"]),
            "guided": (await wide.get("guided", tokens), report.setup["problems_per_turn"]),
        }
        for name, (pipeline, size) in sides.items():  # not counted: allocations
            await answer_problems(pipeline, held_out(min(size, 4), first=CHOOSING_SEEDS), Sampling(max_tokens=16))
            assert name in seconds
        for turn in range(TURNS):
            names = list(sides)[turn % 3 :] + list(sides)[: turn % 3]
            for name in names:
                pipeline, size = sides[name]
                problems = held_out(size, first=turn * 2 * BATCH)
                side = await answer_problems(pipeline, problems, GREEDY)
                written = sum(len(a.text) for a in side.answers)
                seconds[name].append(side.seconds / written)
    # Per character of answer: turns at batch 1 answer fewer problems, and problems differ in length.
    report.put_ratio("speedup_batch1_teacher", seconds["batch1"], seconds["guided"], at_least=10.72)
    report.put_ratio("speedup_batched_teacher", seconds["batched"], seconds["guided"], at_least=2.0)


async def run(options: Any) -> None:
    report = Report("guidance", options.quick)
    report.setup["prices"] = {"teacher": TEACHER_PRICE, "student": STUDENT_PRICE, "unit": "per million tokens"}
    report.setup["sampled"] = {"temperature": SAMPLED.temperature, "top_p": SAMPLED.top_p}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = await accuracy_and_cost(report, folder, options.quick)
        await times(report, folder, tokens, options.quick)
    report.finish(json_only=options.json, output=options.output)


def main(argv: Sequence[str] | None = None) -> None:
    asyncio.run(run(arguments(__doc__ or "", argv)))


if __name__ == "__main__":
    main()
