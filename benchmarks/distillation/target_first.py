"""Distil the target first, then a draft for it: a small target and its draft in place of the large model.

Large is the expensive model, which computes what the demo target computes. Small is the demo target cut to 3 of its 5
layers and distilled from it with our trainer, on the task's training set (answers worded as the target words them);
its cost is then made real as the large one's was, by setting it into larger matrices: 23 M parameters. Its draft is the
packaged distilled one, distilled further against it. Accuracy is measured on the two before they are enlarged.

- ``target_first_latency_ratio``            seconds per problem: large, plain / small with its draft; temperature 0,
                                            batch 1, our loop everywhere, ``gamma = "auto"``
- ``target_first_vs_standard_speculation``  the same against large with the undistilled draft
- ``target_first_vs_distilled_draft``       the same against large with its distilled draft
- ``target_first_accuracy_change``          share of exact answers, small − large, on the same problems
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from benchmarks._models import describe
from benchmarks._report import Report
from benchmarks.distillation._setting import (
    RECIPE,
    Seeds,
    Setting,
    eos_of,
    held_out,
    in_parallel,
    load,
    prompt_items,
    right,
    train,
    training_prompts,
)
from benchmarks.distillation.wallclock import Side
from gkt_plugins.contracts import Sampling
from gkt_plugins.demo.expensive import Size, make_expensive
from gkt_plugins.demo.problems import problems
from gkt_plugins.distill.samples import PromptItem
from gkt_plugins.evaluation.statistics import mean_estimate, ratio_estimate, share_estimate
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel

__all__ = ["run"]

LAYERS = (0, 3, 4)
"""Those three that agree most with the whole before any training."""
SMALL = Size(hidden=512, intermediate=1408, layers=7)
STEPS, BATCH, DRAFT_STEPS = 600, 24, 60
PLANS = 3
"""Of so many training answers, all but one are cut after their first line, the plan, where most is to be learnt."""
TIMED, SCORED = 8, 300


def run(setting: Setting) -> Report:
    """Cut, distil, distil a draft, compare."""
    report = Report("target_first", setting.quick)
    small_folder, draft_folder = setting.work / "small-target", setting.work / "small-draft"
    _cut(setting.target, setting.work / "cut")
    torch.set_num_threads(setting.threads)
    measured = held_out(Seeds.VALIDATION, 32, setting.target)
    distilled = train(
        small_folder,
        target=setting.target,
        draft=setting.work / "cut",
        prompts=_task(setting.target, STEPS * BATCH),
        measured=measured,
        recipe={
            "data": {"policy": "ground_truth", "max_new_tokens": 320},
            "loss": {"divergence": "forward_kl"},
            "train": {
                **RECIPE["train"], "steps": STEPS, "save_steps": STEPS, "batch_size": BATCH, "learning_rate": 1.5e-3,
                "warmup_steps": 20, "constant_until": 0.3,
            },
            "evaluation": {"every": STEPS, "prompts": 32, "temperature": 0.0},
        },
    )  # fmt: skip
    train(
        draft_folder,
        target=small_folder,
        draft=setting.served,
        prompts=training_prompts(DRAFT_STEPS * 16, setting.target),
        measured=measured,
        recipe={
            **RECIPE,
            "train": {**RECIPE["train"], "steps": DRAFT_STEPS, "save_steps": DRAFT_STEPS},
            "evaluation": {"every": DRAFT_STEPS, "prompts": 32, "temperature": 0.0},
        },
    )
    _accuracy(setting, report, small_folder)
    _latency(setting, report, small_folder, draft_folder)
    report.setup.update(
        small_layers=f"{len(LAYERS)} of the demo target's: {LAYERS}", steps=STEPS, draft_steps=DRAFT_STEPS,
        small_agreement_before=round(distilled.before.value, 4), small_agreement_after=round(distilled.after.value, 4),
    )  # fmt: skip
    return report


def _cut(source: Path, output: Path) -> None:
    """The model in ``source`` with some of its layers."""
    model = load(source)
    model.model.layers = nn.ModuleList(model.model.layers[i] for i in LAYERS)
    model.config.num_hidden_layers = len(LAYERS)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in LAYERS]
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)


def _task(folder: Path, count: int) -> list[PromptItem]:
    """The task's training set, worded as the target words it."""
    tokenizer = _tokenizer(folder)
    items = prompt_items(problems(Seeds.TRAINING, count, split="train", voice="house"), folder)
    for place, item in enumerate(items):
        assert item.answer is not None
        if place % PLANS:
            line = next(n for n, token in enumerate(item.answer, start=1) if "\n" in tokenizer.decode([token]))
            items[place] = replace(item, answer=item.answer[:line])
    return items


def _accuracy(setting: Setting, report: Report, small: Path) -> None:
    hits_small, hits_large = in_parallel(_hits, [(small, SCORED), (setting.target, SCORED)], setting.workers)
    report.put_estimate("target_first_small_accuracy", share_estimate(sum(hits_small), SCORED))
    report.put_estimate("target_first_large_accuracy", share_estimate(sum(hits_large), SCORED))
    change = mean_estimate([float(a) - float(b) for a, b in zip(hits_small, hits_large, strict=True)])
    report.put_estimate("target_first_accuracy_change", change)
    report.setup["scored_problems"] = SCORED


def _hits(job: tuple[Path, int]) -> list[bool]:
    """Which problems a model answers exactly, greedily."""
    folder, count = job
    model, tokenizer = load(folder), _tokenizer(folder)
    items = held_out(Seeds.TARGET_FIRST, count, folder)
    loop = DecodeLoop(TransformersModel(model), max_batch=64)
    results = loop.run(DecodeRequest(item.ids, Sampling(max_tokens=384), eos_ids=eos_of(model)) for item in items)
    texts = [tokenizer.decode(result.token_ids, skip_special_tokens=True) for result in results]
    return [right(item, text) for item, text in zip(items, texts, strict=True)]


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def _latency(setting: Setting, report: Report, small_folder: Path, draft_folder: Path) -> None:
    """Seconds per problem, all sides of a problem one after the other."""
    large, small = make_expensive(load(setting.target)), make_expensive(load(small_folder), SMALL)
    served, served_small = TransformersModel(large), TransformersModel(small)
    sides = {
        "large": Side(large, served, None),
        "large_standard_speculation": Side(large, served, setting.draft),
        "large_distilled_draft": Side(large, served, setting.served),
        "small": Side(small, served_small, None),
        "small_distilled_draft": Side(small, served_small, draft_folder),
    }
    for name, one in sides.items():
        for item in held_out(Seeds.SPEED + 1000, 1 if name in ("large", "small") else 3, setting.target):
            one.answer(item, temperature=0.0, limit=128)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, item in enumerate(held_out(Seeds.SPEED, TIMED, setting.target)):
        shift = number % len(sides)
        for name in [*list(sides)[shift:], *list(sides)[:shift]]:
            seconds[name].append(sides[name].answer(item, temperature=0.0, limit=384)[0])
    ours = seconds["small_distilled_draft"]
    report.put_estimate("target_first_latency_ratio", ratio_estimate(seconds["large"], ours), at_least=6.0)
    against = {"standard_speculation": "large_standard_speculation", "distilled_draft": "large_distilled_draft"}
    for name, side in against.items():
        report.put_estimate(f"target_first_vs_{name}", ratio_estimate(seconds[side], ours))
    for name, found in seconds.items():
        report.put(f"target_first_seconds_{name}", sum(found) / TIMED)
    report.setup.update(
        describe(large, "target"),
        small_parameters=small.num_parameters(),
        small_is=f"enlarged to {SMALL}, which changes no logit: this is how its cost is made real",
        timed_problems=TIMED,
    )
