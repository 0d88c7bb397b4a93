"""Guidance as a machine without I/O: events in, actions out, no clock, no tasks, no engine.

Every way of running guidance drives this machine: the batch runner, one streaming request, a gateway, middleware inside
an engine. It presumes neither streaming nor batches: a call's text may come in one event or in hundreds, and the answer
is the same.

::

    machine = GuidanceMachine(request, rules)
    actions = machine.start()
    while not machine.done:
        …carry out ``actions``, wait for what happens…
        actions = machine.receive(event)

Source of the method: GKT, arXiv:2405.19635.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from gkt_plugins.contracts import Call, FinishReason, Usage
from gkt_plugins.errors import EngineError, GktError
from gkt_plugins.guidance.estimates import estimate_tokens, estimate_usage
from gkt_plugins.guidance.events import (
    TEACHER,
    Action,
    CallEnd,
    CallFailed,
    CallKey,
    CallText,
    CancelCall,
    Cancelled,
    Emit,
    Event,
    FailChoice,
    FailRequest,
    Finish,
    Outcome,
    RecordUsage,
    Request,
    Rules,
    StartCall,
)
from gkt_plugins.guidance.graphemes import BROKEN
from gkt_plugins.guidance.seam import handed_over, released
from gkt_plugins.guidance.stops import StopFilter, find_stop

__all__ = ["GuidanceMachine"]


@dataclass
class _Choice:
    number: int
    passing: StopFilter
    unsent_guidance: int = 0
    """Characters of guidance that the filter still holds."""
    notes: list[str] = field(default_factory=list)
    released: int = 0
    """Characters emitted."""
    done: bool = False


class GuidanceMachine:
    """One request, from its first call to its last."""

    def __init__(self, request: Request, rules: Rules) -> None:
        self._request = request
        self._rules = rules
        self._stops = request.sampling.stop
        self._choices = [_Choice(i, StopFilter(self._stops)) for i in range(max(request.n, 0))]
        self._running: dict[CallKey, Call] = {}
        self._texts: dict[CallKey, str] = {}
        self._notes: list[str] = []
        self._budget = 0
        self._released = 0
        self._ending: FinishReason | None = None
        """Why all choices end as soon as the calls still running have: a stop string in the guidance, or a cancel."""
        self._started = False
        self.guidance = ""
        """Teacher text handed to the student, or the whole answer where the teacher finished it."""
        self.guidance_tokens = 0
        """The teacher's tokens in it."""

    @property
    def done(self) -> bool:
        """Nothing more will be emitted, and every call has ended."""
        return self._started and not self._running and all(choice.done for choice in self._choices)

    @property
    def running(self) -> frozenset[CallKey]:
        """Calls that have begun and not ended."""
        return frozenset(self._running)

    # ------------------------------------------------------------------------------------------------ in

    def start(self) -> list[Action]:
        """The first actions. Called once, before any event."""
        if self._started:
            raise ValueError("a guidance machine answers one request; make another for the next")
        self._started = True
        request = self._request
        if refusal := _refusal(request):
            return self._fail_request(GktError(refusal))
        if self._rules.length is None:
            if request.guidance_tokens:
                self._notes.append("guidance off: the pipeline has no teacher")
            return self._hand_over()
        if request.features:
            names = ", ".join(sorted(request.features))
            self._notes.append(f"guidance off: the request asks for {names}, which text from two models cannot give")
            return self._hand_over()
        asked = request.guidance_tokens
        budget = self._rules.length.guidance_tokens(request.prompt) if asked is None else asked
        if budget < 0:
            policy = type(self._rules.length).__name__
            return self._fail_request(
                GktError(f"the length policy {policy} must answer at least 0 guidance tokens, got {budget}")
            )
        self._budget = min(budget, request.sampling.max_tokens)
        if self._budget == 0:
            return self._hand_over()
        sampling = self._rules.teacher_sampling.applied(request.sampling)
        call = Call(request.prompt, "", replace(sampling, max_tokens=self._budget), request.request_id)
        return [self._start(TEACHER, call)]

    def receive(self, event: Event) -> list[Action]:
        """What follows from ``event``.

        :raises ValueError: the event is about a call that is not running; the driver is wrong.
        """
        if isinstance(event, Cancelled):
            return self._cancel()
        if event.key not in self._running:
            raise ValueError(f"{event.key} is not running, so nothing can happen to it; got {event!r}")
        if isinstance(event, CallText):
            self._texts[event.key] += event.text
            if self._ending == "cancelled":
                return []
            return self._teacher_text() if event.key == TEACHER else self._student_text(event)
        call = self._running.pop(event.key)
        recorded: list[Action] = [self._record(event, call)]
        if self._ending:
            return recorded + self._end_choices(event.key)
        if isinstance(event, CallEnd) and event.finish_reason == "cancelled":
            event = CallFailed(event.key, EngineError(f"the {event.key.role} gave up its call unasked"))
        if event.key == TEACHER:
            return recorded + (self._teacher_end(event) if isinstance(event, CallEnd) else self._teacher_failed(event))
        return recorded + self._student_over(event)

    # ------------------------------------------------------------------------------------------- teacher

    def _teacher_text(self) -> list[Action]:
        if self._ending:
            return []
        text = self._texts[TEACHER]
        stop = find_stop(text, self._stops)
        if stop is not None:
            self._ending = "stop"
            return [*self._release_guidance(text[:stop], stop), CancelCall(TEACHER)]
        return self._release_guidance(text, released(text, self._rules.cutting, self._stops))

    def _teacher_end(self, event: CallEnd) -> list[Action]:
        """All of the answer, where the teacher finished it or ``max_tokens`` is spent; otherwise its beginning."""
        text = self._texts[TEACHER]
        self._notes.extend(event.notes)
        spent = event.finish_reason == "length" and self._budget >= self._request.sampling.max_tokens
        if event.finish_reason == "stop" or spent:
            self.guidance_tokens = self._count_guidance(text, event.usage)
            answer = text.rstrip(BROKEN) if spent else text
            return self._release_guidance(answer, len(answer)) + self._finish_all(event.finish_reason)
        cut = max(self._released, handed_over(text, self._rules.cutting))
        if not cut:
            self._notes.append(
                f"guidance empty: nothing in the teacher's first {self._budget} tokens could be handed over whole"
            )
        self.guidance_tokens = self._count_guidance(text[:cut], event.usage)
        return self._hand_over(text[:cut])

    def _teacher_failed(self, event: CallFailed) -> list[Action]:
        """The student goes on from exactly the released text."""
        kept = self._texts[TEACHER][: self._released]
        if not kept and self._rules.on_teacher_error == "fail":
            return self._fail_request(event.error)
        went_on = f"continued after {len(kept)} characters of guidance" if kept else "answered alone"
        self._notes.append(f"degraded: the student {went_on}, because the teacher failed: {event.error}")
        self.guidance_tokens = self._count_guidance(kept, None)
        return self._hand_over(kept)

    def _release_guidance(self, text: str, length: int) -> list[Action]:
        """Emit ``text[:length]``, as far as it is not out yet, to every choice."""
        if length <= self._released:
            return []
        fresh, self._released = text[self._released : length], length
        self.guidance = text[:length]
        return [self._emit(choice, fresh, "teacher") for choice in self._choices]

    def _count_guidance(self, kept: str, usage: Usage | None) -> int:
        """Teacher tokens of ``kept``: counted where there is a tokenizer, else its share of those reported."""
        if not kept:
            return 0
        if self._rules.count_teacher_tokens is not None:
            return self._rules.count_teacher_tokens(kept)
        if usage is None or usage.completion_tokens is None:
            return estimate_tokens(kept)
        return -(-usage.completion_tokens * len(kept) // len(self._texts[TEACHER]))

    # ------------------------------------------------------------------------------------------- student

    def _hand_over(self, guidance: str = "") -> list[Action]:
        """Start a student call for each choice, all from the same guidance."""
        self.guidance = guidance
        if guidance and self._rules.student_prefix == "hint":
            self._notes.append(
                "degraded: hint, the student's engine cannot continue a given beginning, so it was told the guidance"
            )
        request = self._request
        sampling = self._rules.student_sampling.applied(request.sampling)
        tokens = max(1, sampling.max_tokens - self.guidance_tokens)
        actions: list[Action] = []
        unsent = guidance[self._released :]
        for choice in self._choices:
            choice.unsent_guidance = len(unsent)
            actions += self._pass_on(choice, choice.passing.feed(unsent))
            seed = None if sampling.seed is None else sampling.seed + choice.number
            call = Call(request.prompt, guidance, replace(sampling, max_tokens=tokens, seed=seed), request.request_id)
            actions.append(self._start(CallKey("student", choice.number), call))
        return actions

    def _student_text(self, event: CallText) -> list[Action]:
        choice = self._choices[event.key.number]
        if choice.passing.stopped:
            return []
        actions = self._pass_on(choice, choice.passing.feed(event.text))
        return [*actions, CancelCall(event.key)] if choice.passing.stopped else actions

    def _student_over(self, event: CallEnd | CallFailed) -> list[Action]:
        choice = self._choices[event.key.number]
        if isinstance(event, CallEnd):
            choice.notes.extend(event.notes)
            held = self._pass_on(choice, choice.passing.flush())
            return [*held, self._finish(choice, "stop" if choice.passing.stopped else event.finish_reason)]
        if choice.passing.stopped:
            return [self._finish(choice, "stop")]
        choice.done = True
        error = EngineError(
            f"the student failed after {choice.released} characters of the answer were released: {event.error}",
            retryable=event.error.retryable,
        )
        error.__cause__ = event.error
        return [FailChoice(choice.number, error, self._said(choice))]

    def _pass_on(self, choice: _Choice, text: str) -> list[Action]:
        """Emit what a choice's stop filter let through, split by who wrote it."""
        by_teacher = text[: choice.unsent_guidance]
        choice.unsent_guidance -= len(by_teacher)
        by_student = text[len(by_teacher) :]
        actions: list[Action] = [self._emit(choice, by_teacher, "teacher")] if by_teacher else []
        return [*actions, self._emit(choice, by_student, "student")] if by_student else actions

    # ----------------------------------------------------------------------------------------------- out

    def _start(self, key: CallKey, call: Call) -> StartCall:
        self._running[key] = call
        self._texts[key] = ""
        return StartCall(key, call)

    def _emit(self, choice: _Choice, text: str, role: Literal["teacher", "student"]) -> Emit:
        choice.released += len(text)
        return Emit(choice.number, text, role)

    def _record(self, event: CallEnd | CallFailed, call: Call) -> RecordUsage:
        status: Outcome = "final"
        if isinstance(event, CallFailed):
            status = "failed"
        elif event.finish_reason == "cancelled":
            status = "cancelled"
        return RecordUsage(event.key, status, _usage(event, call, self._texts[event.key]))

    def _finish(self, choice: _Choice, reason: FinishReason) -> Finish:
        choice.done = True
        return Finish(choice.number, reason, self._said(choice))

    def _finish_all(self, reason: FinishReason) -> list[Action]:
        return [self._finish(choice, reason) for choice in self._choices if not choice.done]

    def _said(self, choice: _Choice) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._notes, *choice.notes)))

    def _end_choices(self, key: CallKey) -> list[Action]:
        assert self._ending is not None
        if key == TEACHER:
            if self._ending == "stop":
                self.guidance_tokens = self._count_guidance(self.guidance, None)
            return self._finish_all(self._ending)
        choice = self._choices[key.number]
        return [self._finish(choice, "stop" if choice.passing.stopped else self._ending)]

    def _cancel(self) -> list[Action]:
        if not self._running:
            return self._finish_all("cancelled")
        stopping_already = self._ending == "stop" and TEACHER in self._running
        self._ending = self._ending or "cancelled"
        if stopping_already:
            return []
        return [CancelCall(key) for key in self._running if not self._stopped(key)]

    def _stopped(self, key: CallKey) -> bool:
        return key != TEACHER and self._choices[key.number].passing.stopped

    def _fail_request(self, error: GktError) -> list[Action]:
        for choice in self._choices:
            choice.done = True
        return [FailRequest(error)]


def _usage(event: CallEnd | CallFailed, call: Call, text: str) -> Usage:
    return event.usage or estimate_usage(call, text, event.error if isinstance(event, CallFailed) else None)


def _refusal(request: Request) -> str | None:
    """Why this request cannot be answered, in one sentence."""
    prompt = request.prompt
    texts = [message.content for message in prompt.messages] if prompt.text is None else [prompt.text]
    if not any(text.strip() for text in texts):
        return "the prompt is empty; give it at least one word"
    if request.n < 1:
        return f"n, the number of answers, must be at least 1, got {request.n}"
    if request.guidance_tokens is not None and request.guidance_tokens < 0:
        return f"guidance_tokens must be at least 0, got {request.guidance_tokens}; 0 leaves the answer to the student"
    if request.sampling.max_tokens < 1:
        return f"max_tokens must be at least 1, got {request.sampling.max_tokens}"
    if "" in request.sampling.stop:
        return "a stop string must not be empty; leave it out to have none"
    return None
