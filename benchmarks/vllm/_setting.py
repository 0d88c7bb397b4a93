"""Models, prompts and the ways of running vLLM that are compared."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks._models import chat_ids, expensive_target, held_out, tokenizer
from benchmarks.vllm._engines import Engine, Side
from benchmarks.vllm._host import EngineSettings, Job, Seen
from gkt_plugins.demo.models import model_dir

__all__ = ["GAMMA", "PACKAGES", "TEMPERATURES", "THREADS", "Setting", "native", "section", "take_turns"]

PACKAGES = ("gkt-plugins", "vllm", "torch", "transformers")
GAMMA = 4
TEMPERATURES = (0.0, 1.0)
THREADS: Mapping[str, str] = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""One thread for every engine's arithmetic; its front end has the other core."""
ENVIRONMENT = {
    **THREADS,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
NOT_INSTALLED = {"VLLM_PLUGINS": ""}
"""vLLM loads no plugin at all."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark."""

    quick: bool
    work: Path
    """Models, configurations, ledgers and logs; thrown away in the end."""

    @cached_property
    def target(self) -> Path:
        """The expensive model, as a folder."""
        folder = self.work / "expensive"
        expensive_target().save_pretrained(folder)
        for name in _TOKENIZER_FILES:
            shutil.copy(model_dir("teacher") / name, folder)
        return folder

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Held-out questions as chats."""
        return chat_ids(tokenizer("teacher"), held_out(256))

    def some(self, count: int, turn: int) -> list[list[int]]:
        """Prompts of one turn, others in every turn."""
        return [self.prompts[(turn * count + i) % len(self.prompts)] for i in range(count)]


def side(name: str, model: Path, *, environment: Mapping[str, str] | None = None, with_mend: bool = False,
         **arguments: Any) -> Side:  # fmt: skip
    """An engine of ``model`` with more of vLLM's own ``arguments``.

    Without compilation: it starts in a third of the time, and on a CPU the rates are the same.
    """
    own = {"model": str(model), "dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}
    return Side(name, EngineSettings(own | arguments, with_mend), {**ENVIRONMENT, **(environment or {})})


def native(name: str, model: Path, draft: Path, gamma: int = GAMMA) -> Side:
    """vLLM's own drafts, given by hand, without the plugin."""
    speculative_config = {
        "method": "draft_model",
        "model": str(draft),
        "num_speculative_tokens": gamma,
        "draft_sample_method": "probabilistic",
    }
    return side(name, model, environment=NOT_INSTALLED, with_mend=True, speculative_config=speculative_config)


def section(name: str, setting: Setting, model: Path, draft: Path, gamma: int = GAMMA, vllm: str = "") -> Side:
    """The same draft from a ``gkt.toml``. ``vllm``: what its table of that name says."""
    config = setting.work / f"{name}.toml"
    config.write_text(f'[speculation]\ndrafter = "model"\ndraft = "{draft}"\ngamma = {gamma}\n[vllm]\n{vllm}\n')
    return side(name, model, additional_config={"gkt": {"config": str(config)}})


def take_turns(engines: Mapping[str, Engine], jobs: Sequence[Job]) -> dict[str, list[Seen]]:
    """What every engine made of every job, all engines of a job one after the other, in rotating order."""
    names = list(engines)
    seen: dict[str, list[Seen]] = {name: [] for name in names}
    for turn, job in enumerate(jobs):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seen[name].append(engines[name].answer(job))
    return seen
