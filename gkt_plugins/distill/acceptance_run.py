"""Several drafts of one target, loaded and measured on the same answers: what ``gkt acceptance`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gkt_plugins.contracts import BuildContext, Options
from gkt_plugins.distill.acceptance import measure_acceptance, target_samples
from gkt_plugins.distill.acceptance_report import FEW, AcceptanceReport
from gkt_plugins.distill.samples import PromptItem, read_prompts
from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.factories import VERIFIERS
from gkt_plugins.speculation.loading import end_ids, load_causal_model, load_tokenizer
from gkt_plugins.speculation.vocabulary import check_vocabularies

__all__ = ["AcceptanceRun", "choose_device"]


@dataclass(frozen=True)
class AcceptanceRun:
    """What stays the same for all drafts: the target, the prompts, and how answers are written."""

    target: Any
    tokenizer: Any
    prompts: Sequence[PromptItem]
    max_tokens: int
    seed: int
    verifier: str
    """A lossless one."""

    @classmethod
    def load(cls, target: str, prompts: Path, *, limit: int | None, max_tokens: int, seed: int, verifier: str,
             device: torch.device) -> AcceptanceRun:  # fmt: skip
        """
        :param target: folder, or name on the Hub.
        :param limit: only so many prompts, from the first on.
        :raises ConfigError: the target or the prompts cannot be used.
        """
        model = load_causal_model(target, key="--target").to(device).eval()
        tokenizer = load_tokenizer(target)
        if tokenizer is None:
            raise ConfigError(f"--target: {target!r} has no tokenizer that can be loaded; save one beside it")
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 2**31
        if max_tokens >= context:
            raise ConfigError(f"--max-tokens must be less than the target's context of {context}, got {max_tokens}")
        items = read_prompts(prompts, tokenizer, max_prompt_tokens=context - max_tokens)[:limit]
        if len(items) < FEW:
            raise ConfigError(f"expected at least {FEW} prompts to measure on, got {len(items)} of {prompts}; add some")
        return cls(model, tokenizer, items, max_tokens, seed, verifier)

    def load_draft(self, option: str, source: str) -> Any:
        """:raises ConfigError: it cannot be loaded, or its tokens are not the target's; it names ``option``."""
        model = load_causal_model(source, key=option).to(self.target.device).eval()
        tokenizer = load_tokenizer(source)
        try:
            check_vocabularies(
                _vocabulary(self.target),
                _vocabulary(model),
                None if tokenizer is None else self.tokenizer.get_vocab(),
                None if tokenizer is None else tokenizer.get_vocab(),
            )
        except ConfigError as exc:
            raise ConfigError(f"{option}: {exc}") from exc
        return model

    def measure(self, drafts: Mapping[str, Any], temperatures: Sequence[float], gammas: Sequence[int], *,
                advance: Callable[[], object]) -> dict[str, list[AcceptanceReport]]:  # fmt: skip
        """Of each draft, by its name, a report per temperature.

        :param advance: told after the target's answers, and after every gamma of every draft.
        """
        how: dict[str, Any] = {
            "max_new_tokens": self.max_tokens,
            "seed": self.seed,
            "eos_ids": end_ids(self.target, self.tokenizer),
        }
        verifier = VERIFIERS[self.verifier].build(Options(), BuildContext())
        reports: dict[str, list[AcceptanceReport]] = {name: [] for name in drafts}
        for temperature in temperatures:
            samples = target_samples(self.target, self.prompts, temperature=temperature, **how)
            advance()
            for name, draft in drafts.items():
                report = measure_acceptance(
                    self.target,
                    draft,
                    self.prompts,
                    temperature=temperature,
                    gammas=gammas,
                    samples=samples,
                    verifier=verifier,
                    on_gamma=lambda _: advance(),
                    **how,
                )
                reports[name].append(report)
        return reports


def choose_device(name: str | None) -> torch.device:
    """The device of this name; None is ``cuda`` where there is one.

    :raises ConfigError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as exc:
        raise ConfigError(f"--device {name!r} cannot be used: {str(exc).strip().splitlines()[0]}") from exc
    return device


def _vocabulary(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])
