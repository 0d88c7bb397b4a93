"""What goes into the guidance machine, and what comes out.

Each call that an action starts is ended by exactly one :class:`CallEnd` or :class:`CallFailed`, also after
:class:`CancelCall`. So there is one place where its usage becomes known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias

from gkt_plugins.contracts import (
    Call,
    CuttingPolicy,
    FinishReason,
    LengthPolicy,
    Prompt,
    Sampling,
    Usage,
)
from gkt_plugins.errors import EngineError, GktError

__all__ = [
    "TEACHER",
    "Action",
    "CallEnd",
    "CallFailed",
    "CallKey",
    "CallText",
    "CancelCall",
    "Cancelled",
    "Emit",
    "Event",
    "FailChoice",
    "FailRequest",
    "Feature",
    "Finish",
    "Outcome",
    "RecordUsage",
    "Request",
    "Rules",
    "StageSampling",
    "StartCall",
]

Feature: TypeAlias = Literal["logprobs", "tools", "structured_output", "echo", "content_parts", "token_ids", "suffix"]
"""What a request may ask for that text from two models cannot give; it turns guidance off."""

Outcome: TypeAlias = Literal["final", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Request:
    """One question, answered ``n`` times."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    """``max_tokens`` bounds the whole answer, guidance included. Choice i takes ``seed + i``."""
    n: int = 1
    features: frozenset[Feature] = frozenset()
    request_id: str = ""
    guidance_tokens: int | None = None
    """At least 0, and 0 leaves the answer to the student; takes the place of what the length policy would say."""


@dataclass(frozen=True, slots=True)
class StageSampling:
    """What a preset fixes for one of the two stages; None leaves it to the request."""

    temperature: float | None = None
    top_p: float | None = None

    def applied(self, sampling: Sampling) -> Sampling:
        if self.temperature is None and self.top_p is None:
            return sampling
        return replace(
            sampling,
            temperature=sampling.temperature if self.temperature is None else self.temperature,
            top_p=sampling.top_p if self.top_p is None else self.top_p,
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """How a pipeline guides; the same for all of its requests."""

    length: LengthPolicy | None
    """None: there is no teacher, and the student answers alone."""
    cutting: CuttingPolicy
    on_teacher_error: Literal["student", "fail"] = "student"
    """What to do when the teacher fails before any of its text was released."""
    student_prefix: Literal["completion", "continue_final_message", "provider_flag", "hint"] = "completion"
    """The student's ``capabilities.prefix``."""
    count_teacher_tokens: Callable[[str], int] | None = None
    """The teacher's own tokenizer, where it has one; otherwise counts that it did not report are estimated."""
    teacher_sampling: StageSampling = field(default_factory=StageSampling)
    student_sampling: StageSampling = field(default_factory=StageSampling)
    cutting_name: str = ""
    """The cutting policy's name and options: part of what the guidance cache tells apart."""


class CallKey(NamedTuple):
    """Names an engine call within its request: ``teacher`` 0, or ``student`` i for choice i."""

    role: Literal["teacher", "student"]
    number: int


TEACHER = CallKey("teacher", 0)


# --------------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class CallText:
    """A call produced text: a token's, or all of it."""

    key: CallKey
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is over. ``cancelled`` answers a :class:`CancelCall`; ``usage`` is None where the engine did not say."""

    key: CallKey
    finish_reason: FinishReason
    usage: Usage | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call is over because its engine failed."""

    key: CallKey
    error: EngineError
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Whoever asked has gone away."""


Event: TypeAlias = CallText | CallEnd | CallFailed | Cancelled


# -------------------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class StartCall:
    """Call the teacher or the student, streaming or not."""

    key: CallKey
    call: Call


@dataclass(frozen=True, slots=True)
class CancelCall:
    """Stop a call that is still running, then report its end. Nothing to do where it has ended by itself."""

    key: CallKey


@dataclass(frozen=True, slots=True)
class RecordUsage:
    """What a call used; comes before the answer's last text, so that the ledger knows no less than the client."""

    key: CallKey
    status: Outcome
    usage: Usage


@dataclass(frozen=True, slots=True)
class Emit:
    """Append to the answer of one choice. Final: it is never taken back."""

    choice: int
    text: str
    role: Literal["teacher", "student"]
    """Who wrote it."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer of one choice is complete."""

    choice: int
    finish_reason: FinishReason
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FailChoice:
    """One choice cannot be completed; the text emitted so far stands. The others go on."""

    choice: int
    error: EngineError
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FailRequest:
    """The request cannot be answered, and no text of it was emitted."""

    error: GktError


Action: TypeAlias = StartCall | CancelCall | RecordUsage | Emit | Finish | FailChoice | FailRequest
