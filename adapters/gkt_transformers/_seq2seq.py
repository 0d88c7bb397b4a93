"""Encoder-decoder models as teacher or student: plain batched ``generate`` with the answer prefix in the decoder.

Every row keeps its own sampling options, seed, stop strings and token budget: a logits processor draws each row's token
and leaves only that one for ``generate``'s greedy choice, and a stopping criterion ends each row by itself.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gkt_plugins.accounting.money import split_seconds
from gkt_plugins.contracts import Sampling
from gkt_plugins.errors import EngineError
from gkt_transformers._loading import LoadedModel, eos_ids
from gkt_transformers._rows import Job, Row
from gkt_transformers._text import TextCodec

__all__ = ["Seq2SeqRunner"]


@dataclass(slots=True)
class _Entry:
    row: Row
    source: list[int]
    target: list[int]


class Seq2SeqRunner:
    """Decodes jobs on an encoder-decoder model."""

    def __init__(
        self, loaded: LoadedModel, codec: TextCodec, *, max_context: int | None = None, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._model = loaded.module
        self._codec = codec
        limits = [limit for limit in (loaded.context, max_context) if limit is not None]
        self._context = min(limits) if limits else None
        config = self._model.generation_config
        self._eos_ids = eos_ids(self._model)
        start = config.decoder_start_token_id
        self._start = config.bos_token_id if start is None else start

    def run(self, jobs: Sequence[Job], waiting: Callable[[int], list[Job]]) -> None:
        """Answer ``jobs``. Rows whose decoder prefixes are equally long go together: padding there would shift the
        positions of models that number them absolutely."""
        groups: dict[int, list[_Entry]] = defaultdict(list)
        for job in jobs:
            try:
                entry = self._enter(job)
            except EngineError as exc:
                job.fail(exc)
            else:
                groups[len(entry.target)].append(entry)
        for entries in groups.values():
            self._decode(entries)

    def _enter(self, job: Job) -> _Entry:
        call = job.call
        source = self._codec.encode_source(call.prompt)
        prefix = self._codec.encode_target_prefix(call.prefix)
        target = [self._start, *prefix]
        for what, ids in (("prompt", source.ids), ("answer prefix", target)):
            if self._context is not None and len(ids) >= self._context:
                raise EngineError(f"the {what} has {len(ids)} tokens, the model takes {self._context}; shorten it")
        room = self._context - len(target) if self._context is not None else call.sampling.max_tokens
        row = Row(
            job,
            self._codec.detokenizer(prefix),
            prompt_tokens=len(source.ids) + len(prefix),
            max_tokens=min(call.sampling.max_tokens, room),
            eos_ids=self._eos_ids,
            notes=source.notes,
        )
        return _Entry(row, source.ids, target)

    def _decode(self, entries: list[_Entry]) -> None:
        rows = [entry.row for entry in entries]
        started = time.perf_counter()
        device = self._model.device
        longest = max(len(entry.source) for entry in entries)
        source = torch.zeros(len(entries), longest, dtype=torch.long)
        mask = torch.zeros_like(source)
        for i, entry in enumerate(entries):
            source[i, : len(entry.source)] = torch.tensor(entry.source)
            mask[i, : len(entry.source)] = 1
        self._model.generate(
            input_ids=source.to(device),
            attention_mask=mask.to(device),
            decoder_input_ids=torch.tensor([entry.target for entry in entries], device=device),
            logits_processor=LogitsProcessorList([_RowSampler([row.sampling for row in rows], device)]),
            stopping_criteria=StoppingCriteriaList([_RowEnds(rows)]),
            max_new_tokens=max(row.max_tokens for row in rows),
            num_beams=1,
            do_sample=False,
            forced_eos_token_id=None,
        )
        shares = split_seconds(time.perf_counter() - started, [row.completion_tokens for row in rows])
        for row, share in zip(rows, shares, strict=True):
            row.seconds = share
            row.close()


class _RowSampler(LogitsProcessor):
    """Draws each row's token under its own options; every other token gets minus infinity."""

    def __init__(self, samplings: Sequence[Sampling], device: torch.device) -> None:
        self._warpers = [_warpers(sampling) for sampling in samplings]
        self._generators = [_generator(sampling, device) for sampling in samplings]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        chosen = torch.full_like(scores, -torch.inf)
        for i, (warpers, generator) in enumerate(zip(self._warpers, self._generators, strict=True)):
            row = warpers(input_ids[i : i + 1], scores[i : i + 1])  # type: ignore[arg-type]  # slices of such tensors
            if generator is None:
                chosen[i] = row[0]
            else:
                chosen[i, torch.multinomial(row[0].softmax(-1), 1, generator=generator)] = 0.0
        return chosen  # type: ignore[return-value]  # full_like of a FloatTensor


class _RowEnds(StoppingCriteria):
    """Gives every row its new token and ends those that are done."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: object, **kwargs: object) -> torch.BoolTensor:
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if row.finish_reason is None:
                row.push([token])
        return torch.tensor([row.finish_reason is not None for row in self._rows], device=input_ids.device)  # type: ignore[return-value]


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        warpers.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers


def _generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    if sampling.temperature <= 0:
        return None
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator
