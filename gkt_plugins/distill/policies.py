"""Where the answers come from on which the draft is trained."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any, Literal, Protocol, TypeAlias, get_args

from gkt_plugins._wording import suggestion
from gkt_plugins.distill.interleaving import Interleaved
from gkt_plugins.distill.rollouts import Rollouts
from gkt_plugins.distill.samples import PromptItem, Sample, fixed_key
from gkt_plugins.errors import ConfigError

__all__ = [
    "POLICIES", "CorrectOnly", "DataPolicy", "DraftSamples", "GroundTruth", "Interleaved", "Mixture", "PolicyName",
    "Scorer", "TargetSamples", "build_policy", "load_scorer",
]  # fmt: skip

PolicyName = Literal["ground_truth", "target", "draft", "mixture", "interleaved", "correct_only"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)

Scorer: TypeAlias = Callable[[PromptItem, str], bool]
"""Is this text a right answer to the prompt?"""


class DataPolicy(Protocol):
    """Answers prompts with samples to train on."""

    def samples(self, prompts: Sequence[PromptItem], *, seed: int) -> list[Sample]:
        """One sample for each prompt, in order; fewer where the policy finds none worth training on.

        The same weights, prompts and seed give the same samples, so that training can be resumed exactly.
        """
        ...


class GroundTruth:
    """The answers of the data set."""

    def samples(self, prompts: Sequence[PromptItem], *, seed: int) -> list[Sample]:
        """See :meth:`DataPolicy.samples`.

        :raises ConfigError: a prompt has no answer.
        """
        samples = []
        for item in prompts:
            if item.answer is None:
                shown = item.text[:60]
                raise ConfigError(f"the ground_truth policy needs an answer to every prompt, {shown!r} has none")
            samples.append(Sample(item.ids, item.answer, "ground_truth", fixed_key(item.ids, item.answer)))
        return samples


class DraftSamples:
    """On-policy: what the draft writes now. DistillSpec's own policy."""

    def __init__(self, rollouts: Rollouts, *, temperature: float = 1.0) -> None:
        self._rollouts = rollouts
        self._temperature = temperature

    def samples(self, prompts: Sequence[PromptItem], *, seed: int) -> list[Sample]:
        """See :meth:`DataPolicy.samples`."""
        answers = self._rollouts.write([item.ids for item in prompts], temperature=self._temperature, seed=seed)
        return [Sample(item.ids, tuple(answer), "draft") for item, answer in zip(prompts, answers, strict=True)]


class TargetSamples:
    """What the target writes: one answer to each prompt, written when it is first asked for and then kept."""

    def __init__(self, rollouts: Rollouts, *, temperature: float = 1.0, seed: int = 0) -> None:
        """``seed``: of the answers. They do not depend on when they are asked for."""
        self._rollouts = rollouts
        self._temperature = temperature
        self._seed = seed
        self._kept: dict[tuple[int, ...], Sample] = {}

    def samples(self, prompts: Sequence[PromptItem], *, seed: int) -> list[Sample]:
        """See :meth:`DataPolicy.samples`."""
        lacking = [ids for ids in dict.fromkeys(item.ids for item in prompts) if ids not in self._kept]
        if lacking:
            seeds = [int(fixed_key(ids, (self._seed,))[:15], 16) for ids in lacking]
            answers = self._rollouts.write(lacking, temperature=self._temperature, seed=seeds)
            for ids, answer in zip(lacking, answers, strict=True):
                self._kept[ids] = Sample(ids, tuple(answer), "target", fixed_key(ids, answer))
        return [self._kept[item.ids] for item in prompts]


class CorrectOnly:
    """Samples of another policy whose text a scorer accepts: explicit knowledge transfer."""

    def __init__(self, policy: DataPolicy, scorer: Scorer, tokenizer: Any) -> None:
        """``policy``: gives one sample for every prompt. ``tokenizer``: makes the text that ``scorer`` gets."""
        self._policy = policy
        self._scorer = scorer
        self._tokenizer = tokenizer

    def samples(self, prompts: Sequence[PromptItem], *, seed: int) -> list[Sample]:
        """See :meth:`DataPolicy.samples`."""
        found = self._policy.samples(prompts, seed=seed)
        return [sample for item, sample in zip(prompts, found, strict=True) if self._accepts(item, sample)]

    def _accepts(self, item: PromptItem, sample: Sample) -> bool:
        text = self._tokenizer.decode(sample.answer, skip_special_tokens=True)
        return bool(self._scorer(item, text))


class Mixture:
    """Prompts go to the draft with probability ``draft_share``, the λ of on-policy distillation, else to ``rest``."""

    def __init__(self, draft: DataPolicy, rest: DataPolicy, draft_share: float) -> None:
        """:raises ConfigError: ``draft_share`` is not in [0, 1]."""
        if not 0 <= draft_share <= 1:
            raise ConfigError(f"lambda, the share of draft-written samples, must be in [0, 1], got {draft_share!r}")
        self._draft = draft
        self._rest = rest
        self._share = draft_share

    def samples(self, prompts: Sequence[PromptItem], *, seed: int) -> list[Sample]:
        """See :meth:`DataPolicy.samples`."""
        rng = Random(seed)
        to_draft = [rng.random() < self._share for _ in prompts]
        drafted = [item for item, mine in zip(prompts, to_draft, strict=True) if mine]
        others = [item for item, mine in zip(prompts, to_draft, strict=True) if not mine]
        found = [
            self._draft.samples(drafted, seed=seed) if drafted else [],
            self._rest.samples(others, seed=seed) if others else [],
        ]
        # In the order of the prompts again, so that every step of a round gets its share of both.
        waiting = [deque(samples) for samples in found]
        ordered = []
        for item, mine in zip(prompts, to_draft, strict=True):
            queue = waiting[0] if mine else waiting[1]
            if queue and queue[0].prompt == item.ids:  # otherwise the policy found nothing for this prompt
                ordered.append(queue.popleft())
        return ordered


def load_scorer(name: str) -> Scorer:
    """The function behind ``"package.module:function"``.

    :raises ConfigError: there is none.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ConfigError(f"a scorer is named package.module:function, got {name!r}")
    try:
        found: Scorer = getattr(importlib.import_module(module), function)
    except Exception as exc:  # importing runs code of its own
        raise ConfigError(f"cannot load the scorer {name!r}: {exc}") from exc
    if not callable(found):
        raise ConfigError(f"the scorer {name!r} is not a function but {type(found).__name__}")
    return found


def build_policy(name: PolicyName, *, draft_model: Any, target_model: Any, tokenizer: Any, eos_ids: Collection[int],
                 max_new_tokens: int, max_batch: int, temperature: float = 1.0, draft_share: float = 0.5,
                 rest: Literal["ground_truth", "target", "correct_only"] = "target", scorer: Scorer | None = None,
                 top_k: int = 25, seed: int = 0) -> DataPolicy:  # fmt: skip
    """The policy of that name.

    :param max_batch: rows that are decoded side by side.
    :param draft_share: of "mixture": the λ of on-policy distillation. ``rest``: who answers the other prompts.
    :param scorer: needed by "correct_only".
    :param top_k: of "interleaved".
    :param seed: of target-written answers, which are written once.
    :raises ConfigError: an unknown name, or an option that the policy cannot use.
    """

    def rollouts(model: Any) -> Rollouts:
        return Rollouts(model, eos_ids=eos_ids, max_new_tokens=max_new_tokens, max_batch=max_batch)

    def build(name: str) -> DataPolicy:
        if name == "ground_truth":
            return GroundTruth()
        if name == "draft":
            return DraftSamples(rollouts(draft_model), temperature=temperature)
        if name == "target":
            return TargetSamples(rollouts(target_model), temperature=temperature, seed=seed)
        if name == "correct_only":
            if scorer is None:
                raise ConfigError("the correct_only policy needs a scorer; name one as package.module:function")
            return CorrectOnly(build("target"), scorer, tokenizer)
        if name == "mixture":
            return Mixture(build("draft"), build(rest), draft_share)
        if name == "interleaved":
            return Interleaved(
                draft_model,
                target_model,
                eos_ids=eos_ids,
                max_new_tokens=max_new_tokens,
                max_batch=max_batch,
                temperature=temperature,
                top_k=top_k,
            )
        raise ConfigError(f"there is no data policy {name!r}; {suggestion(name, POLICIES)}")

    return build(name)
