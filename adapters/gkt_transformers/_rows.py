"""One call on its way through a model: tokens go in on the model's thread, final text comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from gkt_plugins.contracts import Call, Delta, FinishReason, Usage
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.stops import StopFilter
from gkt_transformers._text import Detokenizer

__all__ = ["Deliver", "Job", "Row"]

Deliver: TypeAlias = Callable[[Delta | EngineError], None]
"""Hands a piece to whoever waits. The last piece has a finish reason, or is an error."""


class Job:
    """A call waiting for its turn, or being decoded. ``cancelled`` may be set by any thread at any time."""

    def __init__(self, call: Call, deliver: Deliver, *, streaming: bool) -> None:
        self.call = call
        self.streaming = streaming
        self.cancelled = False
        self.ended = False
        self._deliver = deliver

    def send(self, text: str) -> None:
        """A piece of the answer."""
        if text:
            self._deliver(Delta(text))

    def end(self, text: str, reason: FinishReason, usage: Usage, notes: tuple[str, ...]) -> None:
        """The last piece; nothing happens when the call was answered before."""
        if not self.ended:
            self.ended = True
            self._deliver(Delta(text, reason, usage, notes))

    def fail(self, error: EngineError) -> None:
        """The call has no answer; nothing happens when it already has one."""
        if not self.ended:
            self.ended = True
            self._deliver(error)


class Row:
    """What is known of one call while it is decoded."""

    def __init__(
        self,
        job: Job,
        detokenizer: Detokenizer,
        *,
        prompt_tokens: int,
        max_tokens: int,
        eos_ids: frozenset[int],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.job = job
        self.sampling = job.call.sampling
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.completion_tokens = 0
        self.seconds = 0.0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.notes = notes
        self.finish_reason: FinishReason | None = None
        self._eos_ids = eos_ids
        self._detokenizer = detokenizer
        self._stops = StopFilter(self.sampling.stop)
        self._unsent: list[str] = []

    def push(self, ids: Sequence[int]) -> int:
        """Take the next tokens; those after the end are dropped.

        :returns: how many were taken. Afterwards ``finish_reason`` says whether the row has ended.
        """
        for taken, token in enumerate(ids):
            if self._ends_at(token):
                return taken + 1
        if self.job.streaming:
            self.job.send(self._flush())
        return len(ids)

    def _ends_at(self, token: int) -> bool:
        if self.job.cancelled:
            self.finish_reason = "cancelled"
            return True
        self.completion_tokens += 1
        if token in self._eos_ids:
            self.finish_reason = "stop"
        else:
            self._unsent.append(self._stops.feed(self._detokenizer.push([token])))
            if self._stops.stopped:
                self.finish_reason = "stop"
            elif self.completion_tokens >= self.max_tokens:
                self.finish_reason = "length"
        return self.finish_reason is not None

    def close(self) -> None:
        """Send the last piece, with what the call used."""
        if not self._stops.stopped:
            self._unsent.append(self._stops.feed(self._detokenizer.finish()))
            if self._stops.stopped:
                self.finish_reason = "stop"
            self._unsent.append(self._stops.flush())
        usage = Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
            seconds=self.seconds,
        )
        self.job.end(self._flush(), self.finish_reason or "cancelled", usage, self.notes)

    def _flush(self) -> str:
        text = "".join(self._unsent)
        self._unsent.clear()
        return text
