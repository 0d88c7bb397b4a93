"""What the demo models can do, measured on held-out problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from gkt_plugins.demo._tokenizers import render
from gkt_plugins.demo.problems import Problem, score
from gkt_plugins.distill.acceptance import held_out_acceptance, target_samples
from gkt_plugins.distill.samples import PromptItem
from gkt_plugins.evaluation.statistics import share_estimate

__all__ = ["DemoModel", "acceptance", "accuracy", "evaluate", "load", "load_tokenizer"]

_BATCH = 100
_MAX_TOKENS = 480


@dataclass(frozen=True)
class DemoModel:
    """A model in single precision and its tokenizer."""

    model: Any
    """A causal language model of transformers."""
    tokenizer: PreTrainedTokenizerFast

    def write(self, prompts: Sequence[str], *, max_tokens: int = _MAX_TOKENS, sample: bool = False) -> list[list[int]]:
        """Token ids that continue each prompt, the closing token included; greedy, or at temperature 1."""
        sampling: dict[str, Any] = {"do_sample": True, "top_k": 0} if sample else {"do_sample": False}
        rows: list[list[int]] = []
        for i in range(0, len(prompts), _BATCH):
            inputs = self.tokenizer(list(prompts[i : i + _BATCH]), return_tensors="pt", padding=True)
            ids = self.model.generate(**inputs, max_new_tokens=max_tokens, **sampling)
            for row in ids[:, inputs["input_ids"].shape[1] :].tolist():
                end = self.tokenizer.eos_token_id
                rows.append(row[: row.index(end) + 1] if end in row else row)
        return rows

    def text(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of token ids, without special tokens."""
        return [str(self.tokenizer.decode(list(row), skip_special_tokens=True)) for row in rows]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a model folder's tokenizer, offline."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return cast("PreTrainedTokenizerFast", tokenizer)


def load(folder: Path) -> DemoModel:
    """Load a model folder, offline, in single precision."""
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "left"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return DemoModel(model.eval(), tokenizer)


def accuracy(problems: Sequence[Problem], answers: Sequence[str]) -> dict[str, Any]:
    """Right answers as a fraction, with its 95 % interval; what names no number is counted as wrong and apart."""
    scores = [score(problem, answer) for problem, answer in zip(problems, answers, strict=True)]
    right = sum(s is True for s in scores)
    share = share_estimate(right, len(scores))
    return {
        "accuracy": round(share.value, 4),
        "interval": [round(share.low, 4), round(share.high, 4)],
        "unparsable": sum(s is None for s in scores),
        "problems": len(scores),
    }


def acceptance(target: DemoModel, draft: DemoModel, problems: Sequence[Problem]) -> dict[str, float]:
    """How well the draft foresees the target on held-out prompts.

    ``acceptance_tv``: mean over positions of 1 - total variation at temperature 1, on the target's own samples.
    ``greedy_agreement``: share of positions where both prefer the same token, on the target's greedy answers.
    """
    texts = [render(problem.question) for problem in problems]
    prompts = [PromptItem(tuple(target.tokenizer(text).input_ids), text) for text in texts]
    figures = {}
    for name, temperature in (("acceptance_tv", 1.0), ("greedy_agreement", 0.0)):
        samples = target_samples(
            target.model,
            prompts,
            temperature=temperature,
            max_new_tokens=_MAX_TOKENS,
            seed=0,
            eos_ids=(target.tokenizer.eos_token_id,),
        )
        measured = held_out_acceptance(target.model, draft.model, samples, temperature=temperature)
        figures[name] = round(measured.value, 4)
    return figures


@torch.no_grad()
def evaluate(
    teacher: DemoModel, student: DemoModel, draft: DemoModel, problems: Sequence[Problem], guidance: Sequence[int]
) -> dict[str, Any]:
    """Every figure of docs/demo-models.md.

    :param guidance: numbers of teacher tokens to hand over, cut at the last word end.
    """
    prompts = [render(p.question) for p in problems]
    written = teacher.write(prompts)
    teacher_texts = teacher.text(written)
    plans = [text.split("\n")[0] + "\n" for text in teacher_texts]
    result: dict[str, Any] = {
        "teacher": accuracy(problems, teacher_texts),
        "student": accuracy(problems, student.text(student.write(prompts))),
        "student_with_teacher_plan": accuracy(problems, _continued(student, prompts, plans)),
        "teacher_plan_exact": accuracy_of_plans(problems, plans),
        "student_by_guidance_tokens": {},
    }
    for g in guidance:
        texts = teacher.text([row[:g] for row in written])
        cut = [t if len(row) <= g else _cut(t) for t, row in zip(texts, written, strict=True)]
        result["student_by_guidance_tokens"][str(g)] = accuracy(problems, _continued(student, prompts, cut))
    result |= acceptance(teacher, draft, problems[:200])
    return result | {"tokens": token_means(teacher, student, problems)}


def accuracy_of_plans(problems: Sequence[Problem], plans: Sequence[str]) -> float:
    """Share of plans that are exactly the reference's."""
    same = [plan.strip() == problem.plan for plan, problem in zip(plans, problems, strict=True)]
    return round(sum(same) / len(same), 4)


def token_means(teacher: DemoModel, student: DemoModel, problems: Sequence[Problem]) -> dict[str, float]:
    """Mean and largest token counts: prompt with chat template, whole answer, plan line; teacher's and student's."""
    out: dict[str, float] = {}
    for name, model in (("teacher", teacher), ("student", student)):
        for what, texts in (
            ("prompt", [render(p.question) for p in problems]),
            ("answer", [p.answer + str(model.tokenizer.eos_token) for p in problems]),
            ("plan", [f"{p.plan}\n" for p in problems]),
        ):
            counts = [len(ids) for ids in model.tokenizer(texts).input_ids]
            out[f"{name}_{what}_mean"] = round(sum(counts) / len(counts), 1)
            out[f"{name}_{what}_max"] = max(counts)
    return out


def _continued(student: DemoModel, prompts: Sequence[str], guidance: Sequence[str]) -> list[str]:
    """Guidance and what the student makes of it."""
    rows = student.write([prompt + text for prompt, text in zip(prompts, guidance, strict=True)])
    return [text + rest for text, rest in zip(guidance, student.text(rows), strict=True)]


def _cut(text: str) -> str:
    """Up to the last end of a word, without the space."""
    return text[: max(text.rfind(" "), text.rfind("\n"), 0)]
