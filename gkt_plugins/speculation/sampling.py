"""From logits to distributions, for rows that each have their own sampling options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gkt_plugins.contracts import Sampling
from gkt_plugins.errors import GktError

__all__ = ["LogitsProcessor", "ProcessorError", "RowOptions", "sample"]

LogitsProcessor: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""As in transformers: (ids [1, n], scores [1, vocab]) → scores [1, vocab]. It sees one row's own unpadded ids."""

_CANDIDATES = 1024
"""Top-p first looks at this many tokens of a large vocabulary; it sorts all of it only where they do not suffice."""


class ProcessorError(GktError):
    """A row's own logits processor failed. ``row``: its place in the batch."""

    def __init__(self, row: int, processor: LogitsProcessor, cause: Exception) -> None:
        super().__init__(f"the logits processor {type(processor).__name__} failed: {cause!r}")
        self.row = row


@dataclass(frozen=True, slots=True)
class RowOptions:
    """The sampling options of the rows of a batch, as tensors. Rebuilt when rows come or go, not at every step."""

    greedy: tuple[bool, ...]
    plain: bool
    """All rows are greedy and use their logits as they are."""
    processors: tuple[tuple[LogitsProcessor, ...], ...]
    penalty: Tensor | None = field(repr=False)
    """[B, 1, 1]; None: no row has one. The same for the options below."""
    temperature: Tensor | None = field(repr=False)
    top_k: Tensor | None = field(repr=False)
    top_p: Tensor | None = field(repr=False)
    min_p: Tensor | None = field(repr=False)
    greedy_mask: Tensor | None = field(repr=False)
    """[B] bool, where only some rows are greedy."""

    @classmethod
    def pack(cls, options: Sequence[Sampling], processors: Sequence[Sequence[LogitsProcessor]],
             device: torch.device) -> RowOptions:  # fmt: skip
        greedy = tuple(o.temperature == 0 for o in options)

        def column(values: list[Any], neutral: Any, dtype: torch.dtype = torch.float32) -> Tensor | None:
            if all(value == neutral for value in values):
                return None
            return torch.tensor(values, dtype=dtype, device=device)[:, None, None]

        sampled = [(o if not g else None) for o, g in zip(options, greedy, strict=True)]
        penalty = column([o.repetition_penalty for o in options], 1.0)
        return cls(
            greedy=greedy,
            plain=all(greedy) and penalty is None and not any(processors),
            processors=tuple(tuple(row) for row in processors) if any(processors) else (),
            penalty=penalty,
            temperature=column([o.temperature if o else 1.0 for o in sampled], 1.0),
            top_k=column([o.top_k if o else 0 for o in sampled], 0, torch.int64),
            top_p=column([o.top_p if o else 1.0 for o in sampled], 1.0),
            min_p=column([o.min_p if o else 0.0 for o in sampled], 0.0),
            greedy_mask=torch.tensor(greedy, device=device) if any(greedy) and not all(greedy) else None,
        )

    def process(self, logits: Tensor, ids: Tensor, lengths: Sequence[int], drafted: Tensor, offset: int) -> Tensor:
        """[B, k, vocab] logits after repetition penalty and processors, in float32.

        ``ids``: [B, T] each row's own tokens, of which ``lengths`` are in use. Position j also sees the first
        ``offset + j`` tokens of ``drafted`` [B, d].
        """
        logits = logits.float()
        if self.penalty is not None:
            logits = _penalise(logits, self.penalty, ids, lengths, drafted, offset)
        if self.processors:
            logits = logits.clone()
            for row, processors in enumerate(self.processors):
                for j in range(logits.shape[1] if processors else 0):
                    seen = torch.cat([ids[row, : lengths[row]], drafted[row, : offset + j]])[None]
                    for processor in processors:
                        try:
                            logits[row, j] = processor(seen, logits[row, j][None])[0]
                        except Exception as exc:
                            raise ProcessorError(row, processor, exc) from exc
        return logits

    def distribution(self, logits: Tensor) -> Tensor:
        """[B, k, vocab] probabilities of processed logits: temperature, top-k, top-p, min-p; greedy rows one-hot."""
        if all(self.greedy):
            return _one_hot(logits)
        scores = logits if self.temperature is None else logits / self.temperature
        if self.top_k is not None:
            scores = _keep_top_k(scores, self.top_k)
        if self.top_p is not None:
            scores = _keep_top_p(scores, self.top_p)
        if self.min_p is not None:
            floor = scores.amax(-1, keepdim=True) + torch.log(self.min_p)
            scores = scores.masked_fill(scores < floor, -torch.inf)
        probs = torch.softmax(scores, dim=-1)
        if self.greedy_mask is not None:
            probs[self.greedy_mask] = _one_hot(logits[self.greedy_mask])
        return probs


def sample(weights: Tensor, noise: Tensor) -> Tensor:
    """[B] tokens drawn from ``weights`` [B, vocab], which need not add up to 1, by inverting the cumulative sum.

    ``noise``: [B] in [0, 1). A token of weight 0 is never drawn.
    """
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not carry a draw behind the last token
    return torch.searchsorted(cumulative, torch.minimum(noise[:, None] * total, below), right=True).squeeze(1)


def _one_hot(logits: Tensor) -> Tensor:
    return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)


def _penalise(logits: Tensor, penalty: Tensor, ids: Tensor, lengths: Sequence[int], drafted: Tensor,
              offset: int) -> Tensor:  # fmt: skip
    batch, width, vocab = logits.shape
    used = torch.arange(ids.shape[1], device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]
    ids = torch.where(used, ids, ids[:, :1])  # padding repeats the first token, which every row has seen
    seen = torch.zeros(batch, 1, vocab, dtype=torch.bool, device=logits.device)
    seen.scatter_(2, ids[:, None], True)
    seen = seen.expand(-1, width, -1).clone()
    for i in range(drafted.shape[1]):
        first = max(i + 1 - offset, 0)  # the first position that comes after this token
        if first < width:
            seen[:, first:].scatter_(2, drafted[:, i, None, None].expand(-1, width - first, 1), True)
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _keep_top_k(scores: Tensor, top_k: Tensor) -> Tensor:
    """Ties with the k-th score are kept, as transformers does."""
    vocab = scores.shape[-1]
    largest = min(int(top_k.max()), vocab)
    values = scores.topk(largest, dim=-1).values
    last = values.gather(-1, (top_k.clamp(1, largest) - 1).expand(-1, scores.shape[1], -1))
    return scores.masked_fill((scores < last) & (top_k > 0), -torch.inf)


def _keep_top_p(scores: Tensor, top_p: Tensor) -> Tensor:
    """A token stays while the probability of all tokens ranked above it is less than top_p; the first always does."""
    vocab = scores.shape[-1]
    mass = torch.logsumexp(scores, dim=-1, keepdim=True)
    width = min(_CANDIDATES, vocab)
    while True:
        values, order = scores.topk(width, dim=-1)
        share = torch.exp(values - mass)
        above = share.cumsum(-1) - share
        if width == vocab or bool(((above[..., -1:] >= top_p) | (top_p >= 1)).all()):
            break
        width = vocab
    keep = above < top_p
    keep[..., 0] = True
    kept = torch.full_like(scores, -torch.inf).scatter_(-1, order, values.masked_fill(~keep, -torch.inf))
    return torch.where(top_p < 1, kept, scores)
