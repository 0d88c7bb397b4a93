"""Models, prompts and the ways of running vLLM that are compared."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks._models import chat_ids, expensive_target, held_out
from benchmarks.vllm._engines import Engine, Side
from benchmarks.vllm._host import EngineSettings, Job, Seen
from gkt_plugins.demo.models import model_dir

__all__ = [
    "ENVIRONMENT",
    "GAMMA",
    "NOT_INSTALLED",
    "PACKAGES",
    "TEMPERATURES",
    "Models",
    "Setting",
    "native",
    "section",
    "side",
    "take_turns",
]

PACKAGES = ("gkt-plugins", "vllm", "torch", "transformers")
GAMMA = 4
TEMPERATURES = (0.0, 1.0)
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}
"""One thread for an engine's arithmetic; its front end has the other core."""
NOT_INSTALLED = {"VLLM_PLUGINS": ""}
"""vLLM loads no plugin at all."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Models:
    """What is measured instead of the packaged models: folders, or names on the Hub."""

    target: str
    draft: str
    distilled: str | None = None


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark."""

    quick: bool
    work: Path
    """Models, configurations, ledgers and logs; thrown away in the end."""
    models: Models | None = None
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)
    """More of vLLM's own, for every engine."""

    @cached_property
    def target(self) -> str:
        """The expensive model."""
        if self.models:
            return self.models.target
        folder = self.work / "expensive"
        expensive_target().save_pretrained(folder)
        for name in _TOKENIZER_FILES:
            shutil.copy(model_dir("teacher") / name, folder)
        return str(folder)

    @property
    def cheap(self) -> str:
        """A model that costs little, so that what surrounds it weighs most."""
        return self.models.target if self.models else str(model_dir("teacher"))

    @property
    def draft(self) -> str:
        return self.models.draft if self.models else str(model_dir("draft"))

    @property
    def distilled(self) -> str | None:
        return self.models.distilled if self.models else str(model_dir("distilled"))

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Held-out questions as chats."""
        return chat_ids(AutoTokenizer.from_pretrained(self.target), held_out(256))

    def some(self, count: int, turn: int) -> list[list[int]]:
        """Prompts of one turn, others in every turn."""
        return [self.prompts[(turn * count + i) % len(self.prompts)] for i in range(count)]


def side(name: str, setting: Setting, model: str, *, environment: Mapping[str, str] | None = None,
         with_mend: bool = False, **arguments: Any) -> Side:  # fmt: skip
    """An engine of ``model`` with more of vLLM's own ``arguments``.

    By default without compilation: it starts in a third of the time.
    """
    own = {"model": model, "dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}
    settings = EngineSettings({**own, **setting.engine_arguments, **arguments}, with_mend)
    return Side(name, settings, {**ENVIRONMENT, **(environment or {})})


def native(name: str, setting: Setting, draft: str, gamma: int = GAMMA) -> Side:
    """The target with vLLM's own drafts, given by hand, without the plugin."""
    speculative_config = {
        "method": "draft_model",
        "model": draft,
        "num_speculative_tokens": gamma,
        "draft_sample_method": "probabilistic",
    }
    return side(
        name,
        setting,
        setting.target,
        environment=NOT_INSTALLED,
        with_mend=True,
        speculative_config=speculative_config,
    )


def section(name: str, setting: Setting, draft: str, gamma: int = GAMMA, vllm: str = "") -> Side:
    """The target with the same draft from a ``gkt.toml``. ``vllm``: what its table of that name says."""
    config = setting.work / f"{name}.toml"
    config.write_text(f'[speculation]\ndrafter = "model"\ndraft = "{draft}"\ngamma = {gamma}\n[vllm]\n{vllm}\n')
    return side(name, setting, setting.target, additional_config={"gkt": {"config": str(config)}})


def take_turns(engines: Mapping[str, Engine], jobs: Sequence[Job]) -> dict[str, list[Seen]]:
    """What every engine made of every job, all engines of a job one after the other, in rotating order."""
    names = list(engines)
    seen: dict[str, list[Seen]] = {name: [] for name in names}
    for turn, job in enumerate(jobs):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seen[name].append(engines[name].answer(job))
    return seen
