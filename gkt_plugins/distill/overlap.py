"""How much of the target's distribution a draft covers, token by token, on answers that the target wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gkt_plugins.distill.rollouts import evaluating
from gkt_plugins.speculation.vocabulary import check_vocabularies

if TYPE_CHECKING:
    from gkt_plugins.distill.samples import Sample

__all__ = ["SampleOverlaps"]

_LOGITS = 2**25
"""Logits of one model at once, in numbers."""


class SampleOverlaps:
    """Samples of the target, on which any number of drafts can be looked at."""

    def __init__(
        self, target_model: Any, samples: Sequence[Sample], *, temperature: float, keep_bytes: int = 2**28
    ) -> None:
        """``keep_bytes``: what the target says is kept for the next draft while it takes no more than this."""
        self._target = target_model
        self._samples = tuple(samples)
        self._temperature = temperature
        self._vocabulary = _vocabulary(target_model)
        self._groups = list(_groups(self._samples, self._vocabulary))
        self._kept: dict[int, Tensor] = {}
        tokens = sum(len(sample.answer) for sample in samples)
        self._keep = (8 if temperature == 0 else 4 * self._vocabulary) * tokens <= keep_bytes

    def of(self, draft_model: Any) -> list[Tensor]:
        """Per sample, [answer tokens] 1 − total variation of target and draft after the true tokens before, in [0, 1].

        At temperature 0 both are certain of their argmax: 1 where they agree, otherwise 0. Padding of a larger head is
        treated as in decoding: the draft's surplus is cut off before its softmax. Both models are left as they were.

        :raises ConfigError: the two vocabularies differ by more than padding.
        """
        check_vocabularies(self._vocabulary, _vocabulary(draft_model))
        overlaps: list[Tensor] = [torch.zeros(0)] * len(self._samples)
        with evaluating(self._target), evaluating(draft_model):
            for number, group in enumerate(self._groups):
                batch = [self._samples[i] for i in group]
                target = self._target_says(number, batch)
                logits = _logits(draft_model, batch)[:, : self._vocabulary].to(target.device)
                draft = _says(logits, self._temperature)
                both = (target == draft).float() if self._temperature == 0 else _common(target, draft)
                for i, part in zip(group, torch.split(both, [len(s.answer) for s in batch]), strict=True):
                    overlaps[i] = part.cpu()
        return overlaps

    def _target_says(self, number: int, batch: Sequence[Sample]) -> Tensor:
        known = self._kept.get(number)
        if known is None:
            known = _says(_logits(self._target, batch), self._temperature)
            if self._keep:
                self._kept[number] = known
        return known


def _says(logits: Tensor, temperature: float) -> Tensor:
    """What decides, of logits [n, vocab]: the argmax [n] at temperature 0, otherwise the distribution [n, vocab]."""
    return logits.argmax(-1) if temperature == 0 else torch.softmax(logits.float() / temperature, -1)


def _common(p: Tensor, q: Tensor) -> Tensor:
    """[n] sum of the smaller probabilities. ``q`` may know fewer tokens: to the others it gives nothing."""
    return torch.minimum(p[:, : q.shape[1]], q).sum(-1)


def _logits(model: Any, batch: Sequence[Sample]) -> Tensor:
    """[n, vocab] at the positions that predict the answers' tokens, one sample after the other."""
    size, device = _vocabulary(model), model.device
    rows = [torch.tensor([*sample.prompt, *sample.answer[:-1]]) for sample in batch]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).clamp(max=size - 1).to(device)
    first = min(len(sample.prompt) for sample in batch) - 1
    keep = torch.arange(first, ids.shape[1], device=device)
    logits = model(input_ids=ids, use_cache=False, return_dict=True, logits_to_keep=keep).logits
    parts = []
    for row, sample in zip(logits, batch, strict=True):
        start = len(sample.prompt) - 1 - first
        parts.append(row[start : start + len(sample.answer)])
    return torch.cat(parts)


def _groups(samples: Sequence[Sample], vocab: int) -> Iterator[list[int]]:
    """Places of samples that are computed together: of similar length, and not more logits than memory is for."""
    group: list[int] = []
    shortest = longest = 0
    for i in sorted(
        (i for i, sample in enumerate(samples) if sample.answer), key=lambda i: (len(samples[i].prompt), i)
    ):
        prompt, total = len(samples[i].prompt), len(samples[i].prompt) + len(samples[i].answer)
        if group and (len(group) + 1) * (max(longest, total) - shortest) * vocab > _LOGITS:
            yield group
            group = []
        if not group:
            shortest, longest = prompt, 0
        longest = max(longest, total)
        group.append(i)
    if group:
        yield group


def _vocabulary(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])
