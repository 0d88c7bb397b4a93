"""What the parts share: models, prompts whose seeds never meet, one distillation, and processes side by side."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks._report import Report
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import FAMILY_NAMES, Problem, parse_answer, problems
from gkt_plugins.distill.acceptance import AcceptanceReport, compare, measure_acceptance, target_samples
from gkt_plugins.distill.checkpoints import Checkpoints
from gkt_plugins.distill.options import DistillOptions
from gkt_plugins.distill.run import DistillReport, distill
from gkt_plugins.distill.samples import PromptItem, Sample

__all__ = [
    "GAMMA", "MAX_NEW_TOKENS", "RECIPE", "TEMPERATURES", "Exam", "Seeds", "Setting", "cap", "eos_of", "held_out",
    "in_parallel", "last_weights", "load", "load_part", "markdown", "prompt_items", "put_gains", "quiet", "right",
    "save_part", "train", "training_prompts",
]  # fmt: skip

GAMMA = 7
MAX_NEW_TOKENS = 256
TEMPERATURES = (0.0, 1.0)

RECIPE: dict[str, dict[str, Any]] = {
    "data": {"policy": "mixture", "lambda": 0.5, "rest": "target", "max_new_tokens": MAX_NEW_TOKENS},
    "loss": {"divergence": "forward_kl"},
    "train": {"batch_size": 16, "learning_rate": 2e-3, "optimizer": "adamw", "warmup_steps": 5, "save_steps": 100_000},
    "evaluation": {"every": 100_000, "prompts": 16, "temperature": 1.0},
}
"""What every distillation here is told, unless a part says otherwise: as the packaged draft was made, with fewer
steps. Half of the answers are the target's: a draft alone never writes what it finds impossible, nor learns it."""

Job = TypeVar("Job")
Result = TypeVar("Result")


class Seeds:
    """First seeds of problem streams. Those for measuring are of the reserved class, which no training ever sees."""

    TRAINING = 50_000_000
    VALIDATION = 60_000_000
    TEST = 61_000_000
    TRANSFER = 62_000_000
    LENIENCY = 63_000_000
    SPEED = 64_000_000
    TARGET_FIRST = 65_000_000


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark."""

    quick: bool
    results: Path
    work: Path
    """Drafts that are trained here; thrown away in the end."""
    threads: int
    workers: int
    """Processes that train and measure side by side, each on one thread."""
    larger: Path | None = None
    """A larger target, not packaged."""
    plain_target: Path | None = None
    """The demo target before it got a wording of its own, not packaged."""
    trl_python: Path = Path(".venv-trl/bin/python")
    target: Path = field(default_factory=lambda: model_dir("teacher"))
    draft: Path = field(default_factory=lambda: model_dir("draft"))
    distilled: Path = field(default_factory=lambda: model_dir("distilled"))

    @property
    def served(self) -> Path:
        """The draft that one would serve."""
        return self.distilled if self.distilled.exists() else self.draft


def load(folder: Path) -> Any:
    """The model in a folder, float32, for inference."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).train(False)


def prompt_items(asked: Iterable[Problem], folder: Path) -> list[PromptItem]:
    """Questions as chats that wait for the assistant, with the answers of the corpus."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    items = []
    for problem in asked:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.question}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = (*tokenizer(problem.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
        items.append(PromptItem(tuple(ids), text, answer, problem.family, str(problem.result)))
    return items


def held_out(first: int, count: int, folder: Path, families: Sequence[str] = FAMILY_NAMES) -> list[PromptItem]:
    """Prompts of the reserved class."""
    return prompt_items(problems(first, count, split="test", families=families), folder)


def training_prompts(count: int, folder: Path, families: Sequence[str] = FAMILY_NAMES) -> list[PromptItem]:
    """Prompts to train on."""
    return prompt_items(problems(Seeds.TRAINING, count, split="train", families=families), folder)


def right(item: PromptItem, text: str) -> bool:
    """The scorer of the correct_only policy: the answer names the right number."""
    answer = parse_answer(text)
    return answer is not None and str(answer) == item.reference


@dataclass(frozen=True)
class Exam:
    """Held-out prompts and what one target answers to them: every draft of it is measured on these."""

    target: Path
    prompts: tuple[PromptItem, ...]
    samples: Mapping[float, tuple[Sample, ...]]
    """Temperature → one answer per prompt."""

    @classmethod
    def write(cls, target: Path, prompts: Sequence[PromptItem], temperatures: Sequence[float] = TEMPERATURES) -> Exam:
        model = load(target)
        samples = {
            temperature: tuple(
                target_samples(model, prompts, temperature=temperature, max_new_tokens=MAX_NEW_TOKENS, seed=1,
                               eos_ids=eos_of(model))
            )
            for temperature in temperatures
        }  # fmt: skip
        return cls(target, tuple(prompts), samples)

    def measure(self, draft: Path) -> dict[float, AcceptanceReport]:
        """Temperature → acceptance and block efficiency at γ = 7, from the decode loop's counters."""
        target, model = load(self.target), load(draft)
        return {
            temperature: measure_acceptance(
                target, model, self.prompts, temperature=temperature, gammas=(GAMMA,), max_new_tokens=MAX_NEW_TOKENS,
                seed=1, eos_ids=eos_of(target), samples=samples,
            )
            for temperature, samples in self.samples.items()
        }  # fmt: skip


def eos_of(model: Any) -> tuple[int, ...]:
    eos = model.generation_config.eos_token_id
    return tuple(eos) if isinstance(eos, list) else (eos,)


def cap(undistilled: AcceptanceReport) -> float:
    """The most that any draft could gain: (γ + 1) / τ₀."""
    return (GAMMA + 1) / undistilled.block_efficiency(GAMMA).value


def put_gains(report: Report, name: str, before: Mapping[float, AcceptanceReport],
              after: Mapping[float, AcceptanceReport], *, at_least: float | None = None,
              lower_end: bool = False) -> None:  # fmt: skip
    """``name``_t0 and ``name``_t1: block efficiency after / before, with its cap beside it.

    :param lower_end: the figure itself is the lower end of the interval, and ``name``_tN_value is the value.
    """
    for temperature in after:
        key = f"{name}_t{temperature:.0f}"
        gain = compare(before[temperature], after[temperature]).block_efficiency[GAMMA]
        if lower_end:
            report.put(key, gain.low)
            if at_least is not None:
                report.goal(key, ">=", at_least)
            report.put_estimate(f"{key}_value", gain)
        else:
            report.put_estimate(key, gain, at_least=at_least)
        report.put(f"{key}_cap", cap(before[temperature]))


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A table; numbers with three decimals, intervals with a dash."""

    def shown(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return " – ".join(map(shown, value))
        return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)

    lines = [columns, ["---"] * len(columns), *([shown(row[column]) for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def train(output: Path, *, target: Path, draft: Path, prompts: Sequence[PromptItem], measured: Sequence[PromptItem],
          recipe: Mapping[str, Mapping[str, Any]], callbacks: Sequence[Any] = ()) -> DistillReport:  # fmt: skip
    """One distillation into ``output`` with our own trainer.

    :param measured: prompts on which it watches acceptance.
    :param recipe: sections of ``distill.toml``: data, loss, train, evaluation.
    """
    models = {"target": str(target), "draft": str(draft), "dtype": "float32", "device": "cpu"}
    options = DistillOptions.model_validate(
        {"models": models, "output": str(output), **{name: dict(keys) for name, keys in recipe.items()}}
    )
    return distill(options, prompts=prompts, held_out=measured, callbacks=callbacks)


def last_weights(output: Path) -> Path:
    """The draft after the last step of a distillation, whether or not it was its best."""
    folder = Checkpoints(output / "checkpoints").latest()
    assert folder is not None, output
    return folder


def in_parallel(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> list[Result]:
    """``function`` of every job, in order; each in one of ``workers`` fresh processes of one thread."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start) as pool:
        return list(pool.map(function, jobs))


def _start() -> None:
    torch.set_num_threads(1)
    quiet()


def quiet() -> None:
    """Nothing of transformers between our own lines."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def save_part(report: Report, results: Path) -> None:
    """Write a part's figures to ``results``, where the next run that leaves it out finds them."""
    results.mkdir(parents=True, exist_ok=True)
    payload = report.payload()
    payload["bounds"] = report.goals
    (results / f"{report.name}.json").write_text(json.dumps(payload, indent=1) + "\n")


def load_part(name: str, results: Path) -> Report | None:
    """What :func:`save_part` wrote, if it did."""
    path = results / f"{name}.json"
    if not path.exists():
        return None
    payload = json.loads(path.read_text())
    bounds = {key: (sense, bound) for key, (sense, bound) in payload["bounds"].items()}
    return Report(name, payload["setup"]["quick"], payload["figures"], payload["intervals"], bounds, payload["setup"])
