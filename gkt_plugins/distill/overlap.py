"""How much of the target's distribution a draft covers, token by token, on answers that the target wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gkt_plugins.speculation.vocabulary import check_vocabularies

if TYPE_CHECKING:
    from gkt_plugins.distill.samples import Sample

__all__ = ["evaluation_mode", "token_overlaps"]

_LOGITS = 2**25
"""Logits of one model at once, in numbers."""


def token_overlaps(
    target_model: Any, draft_model: Any, samples: Sequence[Sample], *, temperature: float
) -> list[Tensor]:
    """Per sample, [answer tokens] 1 − total variation of target and draft after the true tokens before, in [0, 1].

    At temperature 0 both are certain of their argmax: 1 where they agree, otherwise 0. Padding of a larger head is
    treated as in decoding: the draft's surplus is cut off before its softmax.

    :raises ConfigError: the two vocabularies differ by more than padding.
    """
    check_vocabularies(_vocabulary(target_model), _vocabulary(draft_model))
    overlaps: list[Tensor] = [torch.zeros(0)] * len(samples)
    with torch.no_grad(), evaluation_mode(target_model), evaluation_mode(draft_model):
        for group in _groups(samples, _vocabulary(target_model)):
            batch = [samples[i] for i in group]
            p = _logits(target_model, batch)
            q = _logits(draft_model, batch)[:, : p.shape[1]].to(p.device)
            together = _overlap(p, q, temperature).cpu()
            for i, part in zip(group, torch.split(together, [len(sample.answer) for sample in batch]), strict=True):
                overlaps[i] = part
    return overlaps


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Dropout off, whatever part of ``model`` is training; afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _overlap(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """[n] from logits [n, vocab] of the target and [n, vocab or fewer] of the draft."""
    if temperature == 0:
        return (p.argmax(-1) == q.argmax(-1)).float()
    p, q = (torch.softmax(logits.float() / temperature, -1) for logits in (p, q))
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
