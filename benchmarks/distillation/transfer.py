"""Does a distilled draft help where it was not distilled? Families it never saw, and a larger target.

Half of the problem families are trained on with the recipe that all parts share, the others are measured. A null
explains the gain: the same distillation against the target as it was before it got a wording of its own. There draft
and target have learnt from the same corpus, and little is left to align.

- ``transfer_gain_t0``, ``_t1``        block efficiency on unseen families, distilled / undistilled: the interval's
                                       lower end; ``…_value`` is the value
- ``seen_families_gain_t0``, ``_t1``   the same draft on the families it was trained on
- ``larger_target_gain_t0``, ``_t1``   the packaged distilled draft with a larger target; ``larger_target_gain`` is the
                                       smaller of the two
- ``plain_target_gain_t0``, ``_t1``    the null
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks._report import Report
from benchmarks.distillation._setting import (
    GAMMA,
    RECIPE,
    Exam,
    Seeds,
    Setting,
    held_out,
    in_parallel,
    last_weights,
    load,
    put_gains,
    train,
    training_prompts,
)
from gkt_plugins.demo.problems import FAMILY_NAMES
from gkt_plugins.distill.acceptance import AcceptanceReport

__all__ = ["run"]

STEPS = 160
TRAINED, UNSEEN = FAMILY_NAMES[::2], FAMILY_NAMES[1::2]
PROMPTS = 160

Reports = dict[float, AcceptanceReport]


def run(setting: Setting) -> Report:
    """Train what is needed, side by side; then measure all pairs, side by side."""
    report = Report("transfer", setting.quick)
    half, null = setting.work / "half", setting.work / "null"
    jobs: list[tuple[Setting, Path, Path, Sequence[str]]] = [(setting, half, setting.target, TRAINED)]
    if setting.plain_target:
        jobs.append((setting, null, setting.plain_target, FAMILY_NAMES))
    in_parallel(_train, jobs, setting.workers)
    exams = {
        "transfer_gain": (setting.target, UNSEEN, last_weights(half)),
        "seen_families_gain": (setting.target, TRAINED, last_weights(half)),
    }
    if setting.plain_target:
        exams["plain_target_gain"] = (setting.plain_target, FAMILY_NAMES, last_weights(null))
    if setting.larger:
        exams["larger_target_gain"] = (setting.larger, FAMILY_NAMES, setting.served)
    measured = in_parallel(_before_and_after, [(setting, *exam) for exam in exams.values()], setting.workers)
    for name, (before, after) in zip(exams, measured, strict=True):
        at_least = {"transfer_gain": 1.05, "larger_target_gain": 1.0}.get(name)
        put_gains(report, name, before, after, at_least=at_least, lower_end=name == "transfer_gain")
        for temperature, found in before.items():
            report.setup[f"{name}_undistilled_t{temperature:.0f}"] = {
                "acceptance_tv": round(found.acceptance_tv.value, 4),
                "block_efficiency": round(found.block_efficiency(GAMMA).value, 4),
            }
    if setting.larger:
        gains = [report.figures[f"larger_target_gain_t{t}"] for t in (0, 1)]
        report.put("larger_target_gain", min(float(gain or 0) for gain in gains))
        report.setup["parameters"] = {
            name: load(folder).num_parameters()
            for name, folder in (("target", setting.target), ("larger", setting.larger))
        }
    report.setup.update(steps=STEPS, recipe=RECIPE, gamma=GAMMA, prompts=PROMPTS, trained_families=TRAINED,
                        unseen_families=UNSEEN, packaged_draft=setting.served.name)  # fmt: skip
    return report


def _train(job: tuple[Setting, Path, Path, Sequence[str]]) -> None:
    setting, output, target, families = job
    train(
        output,
        target=target,
        draft=setting.draft,
        prompts=training_prompts(STEPS * RECIPE["train"]["batch_size"], setting.target, families),
        measured=held_out(Seeds.VALIDATION, 8, setting.target, families),
        recipe={**RECIPE, "train": {**RECIPE["train"], "steps": STEPS, "save_steps": STEPS}},
    )


def _before_and_after(job: tuple[Setting, Path, Sequence[str], Path]) -> tuple[Reports, Reports]:
    setting, target, families, draft = job
    exam = Exam.write(target, held_out(Seeds.TRANSFER, PROMPTS, setting.target, families))
    return exam.measure(setting.draft), exam.measure(draft)
