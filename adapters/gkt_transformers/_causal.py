"""Decoder-only models: every call is a row of one decode loop, which late calls join while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from gkt_plugins.errors import EngineError
from gkt_plugins.speculation.alarm import AcceptanceAlarm
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult
from gkt_transformers._rows import Job, Row
from gkt_transformers._text import TextCodec

__all__ = ["CausalRunner"]


class CausalRunner:
    """Decodes jobs on a decoder-only model."""

    def __init__(
        self,
        loop: DecodeLoop,
        codec: TextCodec,
        *,
        eos_ids: frozenset[int],
        max_batch: int,
        notes: tuple[str, ...] = (),
        alarm: AcceptanceAlarm | None = None,
        max_context: int | None = None,
        threads: int | None = None,
    ) -> None:
        """``loop`` is used by nobody else. ``notes`` are part of every answer; ``alarm`` is told of each."""
        if threads is not None:
            torch.set_num_threads(threads)
        self._loop = loop
        self._codec = codec
        self._eos_ids = eos_ids
        self._max_batch = max_batch
        self._notes = notes
        self._alarm = alarm
        self._context = min(loop.target.context, max_context or loop.target.context)
        self._active: dict[int, Row] = {}

    def run(self, jobs: Sequence[Job], waiting: Callable[[int], list[Job]]) -> None:
        """Answer ``jobs``, and what comes meanwhile."""
        try:
            for job in jobs:
                self._enter(job)
            while self._loop.busy:
                for identity, row in self._active.items():
                    if row.job.cancelled:
                        self._loop.cancel(identity)
                self._loop.step()
                for job in waiting(self._max_batch - len(self._active)):
                    self._enter(job)
        except BaseException:
            for identity in self._active:
                self._loop.cancel(identity)  # the next batch must not find them there
            raise

    def _enter(self, job: Job) -> None:
        try:
            row, request = self._prepare(job)
        except EngineError as exc:
            job.fail(exc)
            return
        except Exception as exc:  # noqa: BLE001 - a tokenizer or template that stumbles must hurt its own row only
            job.fail(EngineError(f"the prompt cannot be tokenised: {exc!r}"))
            return

        def on_finish(result: DecodeResult) -> None:
            self._active.pop(identity, None)
            self._leave(row, result)

        def on_tokens(tokens: Sequence[int]) -> None:
            row.push(tokens)

        streamed = job.streaming and not request.criteria
        identity = self._loop.add(request, on_tokens=on_tokens if streamed else None, on_finish=on_finish)
        self._active[identity] = row

    def _prepare(self, job: Job) -> tuple[Row, DecodeRequest]:
        sampling = job.call.sampling
        prompt = self._codec.encode(job.call.prompt, job.call.prefix)
        size = len(prompt.ids)
        if size >= self._context:
            raise EngineError(f"the prompt has {size} tokens, the model takes {self._context}; shorten it")
        budget = min(sampling.max_tokens, self._context - size)
        row = Row(
            job,
            self._codec.detokenizer(prompt.ids),
            prompt_tokens=size,
            max_tokens=budget,
            eos_ids=self._eos_ids,
            notes=prompt.notes + self._notes,
        )
        request = DecodeRequest(
            prompt.ids,
            replace(sampling, max_tokens=budget, stop=()),
            eos_ids=tuple(self._eos_ids),
            criteria=(_StopStrings(row),) if sampling.stop else (),
            request_id=job.call.request_id,
        )
        return row, request

    def _leave(self, row: Row, result: DecodeResult) -> None:
        if result.error is not None:
            row.job.fail(EngineError(str(result.error)))
            return
        if self._alarm is not None:
            self._alarm.observe(result.counts)
        row.push(result.token_ids[row.completion_tokens :])  # those it has not had as they came
        row.finish_reason = row.finish_reason or result.finish_reason  # to the loop a criterion's end is always a stop
        row.drafted_tokens = result.counts.drafted
        row.accepted_tokens = result.counts.accepted
        row.seconds = result.seconds
        row.notes += result.notes
        row.close()


class _StopStrings:
    """The row's own text decides: what it streams and where it stops cannot disagree."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def __call__(self, ids: Any, scores: Any) -> bool:
        self._row.push([int(ids[0, -1])])
        return self._row.finish_reason is not None
