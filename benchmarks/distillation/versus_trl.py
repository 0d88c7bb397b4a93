"""TRL's ``GKDTrainer`` against our trainer: the same start draft, target, prompts, divergence, batch, learning rate,
precision, threads and answer length; both purely on-policy. They train in turns, each for the same time.

Tokens are distinct answer tokens that the draft sampled and was trained on, each counted once, end-of-sequence
included. TRL samples anew for every step. Ours samples for two steps at once, so that half of the tokens are one
optimiser step old; a second row lets them grow older. Both trainers get their best settings in what is not compared:
TRL has no gradient checkpointing, and neither saves, logs or measures while it trains.

- ``vs_trl_tokens_per_s``           ours / TRL's; ``vs_trl_tokens_per_s_lag7`` with eight steps per sampling
- ``vs_trl_distillation_trainer_…``   the same against TRL's newer ``DistillationTrainer``, one round
- ``vs_trl_block_efficiency``       draft of ours / draft of TRL's after equal time: γ = 7, temperature 1
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks._report import Report
from benchmarks.distillation._setting import (
    GAMMA,
    Exam,
    Seeds,
    Setting,
    held_out,
    in_parallel,
    last_weights,
    train,
    training_prompts,
)
from gkt_plugins.demo.problems import problems
from gkt_plugins.distill.acceptance import AcceptanceReport, compare
from gkt_plugins.evaluation.statistics import Estimate, median_estimate, sums_estimate

__all__ = ["run"]

SECONDS = 60.0
BATCH, LEARNING_RATE, BETA, MAX_NEW_TOKENS = 16, 1e-3, 0.5, 64
PROMPTS = 8192
LAG = 8
"""Steps per sampling in the second row."""


def run(setting: Setting) -> Report:
    """Train in turns, then measure all drafts alike."""
    report = Report("versus_trl", setting.quick)
    rounds = 1 if setting.quick else 2
    figures: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": [], "ours_lag": [], "trl_distillation": []}
    folders = [setting.work / f"trl-{turn}" for turn in range(rounds)]
    for turn, folder in enumerate(folders):
        sides = {
            "ours": partial(_ours, setting, folder / "ours", turn, 2),
            "trl": partial(_theirs, setting, folder, turn, "gkd"),
        }
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            figures[name].append(sides[name]())
    if not setting.quick:
        figures["ours_lag"].append(_ours(setting, setting.work / "trl-lag", 0, LAG))
        figures["trl_distillation"].append(_theirs(setting, setting.work / "trl-other", 0, "distillation"))
    rates = {name: [found["tokens"] / found["seconds"] for found in runs] for name, runs in figures.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["trl"], strict=True)]
    if len(ratios) > 1:
        report.put_estimate("vs_trl_tokens_per_s", median_estimate(ratios))
    else:
        report.put("vs_trl_tokens_per_s", ratios[0])
    report.goal("vs_trl_tokens_per_s", ">=", 2.0)
    if rates["ours_lag"]:
        report.put(f"vs_trl_tokens_per_s_lag{LAG - 1}", rates["ours_lag"][0] * rounds / sum(rates["trl"]))
    if rates["trl_distillation"]:
        other = sum(rates["ours"]) / rounds / rates["trl_distillation"][0]
        report.put("vs_trl_distillation_trainer_tokens_per_s", other)
    for name, rate in rates.items():
        if rate:
            report.put(f"{name}_tokens_per_s", sum(rate) / len(rate))

    exam = Exam.write(setting.target, held_out(Seeds.TEST, 48 if setting.quick else 96, setting.target), (1.0,))
    drafts = [setting.draft]
    for folder in folders:
        drafts += [last_weights(folder / "ours"), folder / "theirs"]
    start, *measured = in_parallel(_measure, [(exam, draft) for draft in drafts], setting.workers)
    pairs = list(zip(measured[1::2], measured[::2], strict=True))  # theirs, ours
    report.put_estimate("vs_trl_block_efficiency", _together(pairs))
    report.goal("vs_trl_block_efficiency", ">=", 1.0)
    for turn, (theirs, ours) in enumerate(pairs):
        for name, found in (("ours", ours), ("trl", theirs)):
            gain = compare(start, found)
            figures[name][turn].update(
                block_efficiency=round(found.block_efficiency(GAMMA).value, 4),
                block_efficiency_gain=round(gain.block_efficiency[GAMMA].value, 4),
                acceptance_tv=round(found.acceptance_tv.value, 4),
            )
    report.put("trl_start_block_efficiency", start.block_efficiency(GAMMA).value)
    report.setup.update(
        batch=BATCH, learning_rate=LEARNING_RATE, divergence=f"jsd, beta {BETA}", max_new_tokens=MAX_NEW_TOKENS,
        on_policy_share=1.0, precision="float32", optimizer="AdamW, constant learning rate, gradients clipped to 1",
        seconds_each=SECONDS, rounds=rounds, runs=figures, trl=_versions(setting), temperature=1.0, gamma=GAMMA,
    )  # fmt: skip
    return report


def _together(pairs: list[tuple[AcceptanceReport, AcceptanceReport]]) -> Estimate:
    """Block efficiency, second / first, over the prompts of all rounds."""
    rows = [
        (ours.counts[GAMMA], theirs.counts[GAMMA])
        for first, second in pairs
        for theirs, ours in zip(first.prompts, second.prompts, strict=True)
    ]
    columns = [[own.accepted + own.blocks for own, _ in rows], [own.blocks for own, _ in rows],
               [other.accepted + other.blocks for _, other in rows], [other.blocks for _, other in rows]]  # fmt: skip
    return sums_estimate(columns, lambda sums: (sums[0] / sums[1]) / (sums[2] / sums[3]))


class _Clock(TrainerCallback):
    """Ends the training when its time is over, as TRL's side does."""

    def __init__(self, seconds: float) -> None:
        self.limit = seconds
        self.begun = 0.0
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.begun
        if self.seconds >= self.limit:
            control.should_training_stop = control.should_save = True


def _ours(setting: Setting, output: Path, seed: int, steps_per_rollout: int) -> dict[str, Any]:
    clock = _Clock(SECONDS)
    recipe: dict[str, dict[str, Any]] = {
        "data": {"policy": "draft", "max_new_tokens": MAX_NEW_TOKENS},
        "loss": {"divergence": "jsd", "beta": BETA},
        "train": {
            "steps": 100_000,
            "batch_size": BATCH,
            "steps_per_rollout": steps_per_rollout,
            "optimizer": "adamw",
            "learning_rate": LEARNING_RATE,
            "warmup_steps": 0,
            "constant_until": 1.0,
            "save_steps": 100_000,
            "seed": seed,
        },
        "evaluation": {"every": 100_000, "prompts": 2},
    }
    report = train(
        output,
        target=setting.target,
        draft=setting.draft,
        prompts=training_prompts(PROMPTS, setting.target),
        measured=held_out(Seeds.VALIDATION, 2, setting.target),
        recipe=recipe,
        callbacks=[clock],
    )
    return {"seconds": round(clock.seconds, 2), "steps": report.steps, "tokens": report.tokens}


def _theirs(setting: Setting, folder: Path, seed: int, trainer: str) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.jsonl"
    with prompts.open("w") as file:
        for problem in problems(Seeds.TRAINING, PROMPTS, split="train"):
            turns = (("user", problem.question), ("assistant", problem.answer))
            file.write(json.dumps([{"role": role, "content": text} for role, text in turns]) + "\n")
    job = {
        "target": str(setting.target), "draft": str(setting.draft), "prompts": str(prompts),
        "output": str(folder / "theirs"), "seconds": SECONDS, "batch": BATCH, "learning_rate": LEARNING_RATE,
        "beta": BETA, "max_new_tokens": MAX_NEW_TOKENS, "max_length": 1024, "threads": setting.threads, "seed": seed,
        "trainer": trainer,
    }  # fmt: skip
    done = subprocess.run(
        [str(setting.trl_python), "-P", str(Path(__file__).with_name("_trl_driver.py"))],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(setting.threads), "TRL_EXPERIMENTAL_SILENCE": "1"},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(job: tuple[Exam, Path]) -> AcceptanceReport:
    exam, draft = job
    return exam.measure(draft)[1.0]


def _versions(setting: Setting) -> dict[str, str]:
    code = "import importlib.metadata as m; print(*(m.version(n) for n in ('trl', 'torch', 'transformers')))"
    done = subprocess.run([str(setting.trl_python), "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(("trl", "torch", "transformers"), done.stdout.split(), strict=True))
