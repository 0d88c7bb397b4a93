"""A target behind an endpoint, as the training loop sees it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gkt_plugins.contracts import BuildContext, Engine
from gkt_plugins.distill.endpoint_answers import Asking, collect
from gkt_plugins.distill.endpoint_loss import DraftWithScores, Scores, known_overlap
from gkt_plugins.distill.endpoint_tokens import ScoredSample, TokenTable
from gkt_plugins.distill.imitated import Imitated
from gkt_plugins.distill.models import Halves, ModelPair
from gkt_plugins.distill.options import DistillOptions
from gkt_plugins.distill.rollouts import evaluating
from gkt_plugins.distill.samples import PromptItem, Sample, collate
from gkt_plugins.distill.stream import Part
from gkt_plugins.errors import ConfigError
from gkt_plugins.evaluation.statistics import Estimate, ratio_estimate
from gkt_plugins.speculation.formulas import block_efficiency

__all__ = ["ANSWERS", "imitated_endpoint"]

ANSWERS = "answers.jsonl"
"""In the output folder: what the endpoint answered, so that nothing is asked twice."""

_ROWS = 32
"""Held-out answers that go through the draft at once."""


def imitated_endpoint(
    options: DistillOptions, pair: ModelPair, training: Sequence[PromptItem], measured: Sequence[PromptItem]
) -> Imitated:
    """Ask for all answers, and say how to learn from them.

    :raises ConfigError: there is no such configuration or engine, or several processes would ask the same.
    :raises BackendError: an answer could not be had.
    """
    from gkt_plugins.accounting.accountant import Accountant, open_accountant
    from gkt_plugins.config import load_config
    from gkt_plugins.plugins import load_plugins

    assert options.endpoint is not None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("an endpoint is imitated by one process; start 'gkt distill' without 'accelerate launch'")
    name = options.endpoint.engine
    plugins = load_plugins()
    config = load_config(options.base_dir / options.endpoint.config, plugins=plugins)
    if name not in config.engines:
        known = ", ".join(sorted(config.engines)) or "none"
        raise ConfigError(
            f"endpoint.engine must name an engine of {options.endpoint.config}, got {name!r}; it has {known}"
        )
    section = config.engines[name]

    def build() -> Engine:
        context = BuildContext(name=name, base_dir=config.base_dir, env=os.environ,
                               resources={"config": config, "plugins": plugins})  # fmt: skip
        return plugins.engines().build(section.adapter, section.options, context)

    def open_accounts() -> Accountant:
        return open_accountant(config, plugins)

    model = str(getattr(section.options, "model", name))
    asking = Asking(model, options.data.temperature, options.data.max_new_tokens, options.endpoint.logprobs,
                    options.train.seed)  # fmt: skip
    measuring = replace(asking, temperature=options.evaluation.temperature)
    path, together = options.output_dir / ANSWERS, options.endpoint.concurrency
    held = collect(build, open_accounts, measured, measuring, path, concurrency=together)
    answers = collect(build, open_accounts, training, asking, path, concurrency=together)
    table = TokenTable(pair.tokenizer, pair.eos_ids[0] if pair.eos_ids else None)
    scored = [table.scored(item, answer) for item, answer in zip(training, answers, strict=True)]
    held_out = EndpointHeldOut(
        [table.scored(item, answer) for item, answer in zip(measured, held, strict=True)], pair.pad_id
    )
    store = _Store(scored)

    def efficiency(draft: Any) -> Estimate:
        found = held_out.acceptance(draft)
        gamma = options.evaluation.gamma
        value, low, high = (block_efficiency(min(a, 1.0), gamma) for a in (found.value, found.low, found.high))
        return Estimate(value, low, high, found.n)

    return Imitated(
        source=model,
        module=lambda draft: DraftWithScores(draft, options.loss),
        policy=lambda draft: store,
        states=store.scores,
        measure=held_out.acceptance,
        efficiency=efficiency,
        notes=lambda: (*_told(scored), *held_out.notes()),
    )


class _Store:
    """The data policy, and what is known at its tokens."""

    def __init__(self, scored: Sequence[ScoredSample]) -> None:
        self._by_prompt = {one.sample.prompt: one.sample for one in scored if one.sample.answer}
        self._by_key = {one.sample.key: one.scores for one in scored}

    def samples(self, prompts: Sequence[PromptItem], *, seed: int) -> list[Sample]:
        """See :meth:`gkt_plugins.distill.policies.DataPolicy.samples`."""
        return [self._by_prompt[item.ids] for item in prompts if item.ids in self._by_prompt]

    def scores(self, part: Part) -> Scores:
        """At the part's picked positions, in their order."""
        found = [self._by_key[sample.key] for sample in part.samples]
        return _side_by_side(found).to(part.ids.device)


class EndpointHeldOut:
    """Held-out answers of an endpoint, on which a draft in training is measured again and again."""

    def __init__(self, scored: Sequence[ScoredSample], pad_id: int) -> None:
        """:raises ConfigError: fewer than two answers have text."""
        self._scored = [one for one in scored if one.sample.answer]
        if len(self._scored) < 2:
            raise ConfigError(f"acceptance needs at least 2 held-out answers with text, got {len(self._scored)}")
        self._pad_id = pad_id
        self._tail = 0.0

    def acceptance(self, draft: Any) -> Estimate:
        """The known part of Σ min(p, q), a lower bound of ``acceptance_tv``, with its interval over answers."""
        halves = Halves(draft)
        overlaps: list[Tensor] = []
        tails: list[Tensor] = []
        with evaluating(draft):
            for begin in range(0, len(self._scored), _ROWS):
                rows = self._scored[begin : begin + _ROWS]
                batch = collate([one.sample for one in rows], self._pad_id).to(draft.device)
                hidden = halves.hidden(batch.ids).flatten(0, 1)[batch.predicts_answer.flatten()]
                sizes = [len(one.sample.answer) for one in rows]
                for one, states in zip(rows, torch.split(hidden, sizes), strict=True):
                    overlap, tail = known_overlap(one.scores.to(draft.device), halves.head(states))
                    overlaps.append(overlap)
                    tails.append(tail)
        self._tail = float(torch.cat(tails).mean())
        return ratio_estimate([float(one.sum()) for one in overlaps], [len(one) for one in overlaps])

    def notes(self) -> tuple[str, ...]:
        """What the last measurement leaves open."""
        if not any(any(one.known) for one in self._scored):
            told = (
                "acceptance_tv is the probability that the draft gives to the endpoint's tokens, for text tells no more"
            )
        else:
            told = (
                f"acceptance_tv, at temperature 1, is a lower bound: tokens that the endpoint did not tell add at most "
                f"{self._tail:.4f}"
            )
        return (f"{told}; block efficiency follows from it by formula",)


def _told(scored: Sequence[ScoredSample]) -> tuple[str, ...]:
    """Of the training answers: what was known, and how far the gradient may be off."""
    known = [one for one in scored if any(one.known)]
    if not known:
        return (f"learnt from the text of {len(scored)} answers alone, as SeqKD",)
    rest = torch.cat([one.scores.rest for one in known])
    said = (
        f"the endpoint told a mass of {1 - float(rest.mean()):.4f} of its distribution, so the gradient by the logits "
        f"is off by at most {2 * float(rest.mean()):.4f} in sum per token"
    )
    if len(known) == len(scored):
        return (said,)
    return (said, f"{len(scored) - len(known)} of {len(scored)} answers were learnt from as text alone, because their "
                  "tokens are not the draft's or came without probabilities")  # fmt: skip


def _side_by_side(scores: Sequence[Scores]) -> Scores:
    """One after the other, as wide as the widest."""
    if not scores:
        return Scores(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    width = max(one.ids.shape[1] for one in scores)

    def padded(rows: Tensor) -> Tensor:
        return torch.nn.functional.pad(rows, (0, width - rows.shape[1]))

    return Scores(torch.cat([padded(one.ids) for one in scores]), torch.cat([padded(one.probs) for one in scores]))
