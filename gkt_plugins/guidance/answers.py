"""What a driver hands back: the answer, who wrote which part of it, and what it used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gkt_plugins.contracts import FinishReason, Role, Usage, UsageRecord
from gkt_plugins.errors import EngineError, GktError
from gkt_plugins.guidance.events import Action, Emit, FailChoice, FailRequest, Finish

__all__ = ["Answer", "AnswerBuilder", "Choice", "total_usage"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a request's answers."""

    text: str
    guidance: str
    """The beginning of ``text`` that the teacher wrote; empty where there was no guidance."""
    finish_reason: FinishReason | None
    """None: it failed, and ``text`` is what was released before."""
    notes: tuple[str, ...] = ()
    error: EngineError | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything about one request."""

    request_id: str
    choices: tuple[Choice, ...] = ()
    error: GktError | None = None
    """Why there are no choices."""
    records: tuple[UsageRecord, ...] = ()
    """One per engine call and attempt, as the ledger has them."""
    cached: bool = False
    """The guidance came from the guidance cache, or from another request that asked for the same at the same time."""
    guidance_tokens: int = 0
    """Teacher tokens handed to the student, or of the whole answer where the teacher finished it."""

    @property
    def retries(self) -> int:
        """Attempts beyond the first, of all calls."""
        return sum(record.attempt > 0 for record in self.records)

    @property
    def text(self) -> str:
        """The first choice's text; empty where there is none."""
        return self.choices[0].text if self.choices else ""

    @property
    def guidance(self) -> str:
        """The first choice's guidance."""
        return self.choices[0].guidance if self.choices else ""

    @property
    def errors(self) -> tuple[GktError, ...]:
        """What went wrong, of the request or of its choices; empty where all is well."""
        return (self.error,) if self.error else tuple(choice.error for choice in self.choices if choice.error)

    @property
    def usage(self) -> dict[Role, Usage]:
        """Totals by role."""
        roles = dict.fromkeys(record.role for record in self.records)
        return {role: total_usage(r.usage for r in self.records if r.role == role) for role in roles}


def total_usage(usages: Iterable[Usage]) -> Usage:
    """The sum of at least one; a count that is unknown for one of them is unknown for all."""
    known = list(usages)
    return Usage(
        prompt_tokens=_total([usage.prompt_tokens for usage in known]),
        cached_tokens=_total([usage.cached_tokens for usage in known]),
        completion_tokens=_total([usage.completion_tokens for usage in known]),
        drafted_tokens=sum(usage.drafted_tokens for usage in known),
        accepted_tokens=sum(usage.accepted_tokens for usage in known),
        seconds=None if any(u.seconds is None for u in known) else sum(u.seconds or 0.0 for u in known),
        estimated=any(usage.estimated for usage in known),
    )


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


@dataclass(slots=True)
class _Growing:
    texts: list[str] = field(default_factory=list)
    guidance: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    notes: tuple[str, ...] = ()
    error: EngineError | None = None


@dataclass(slots=True)
class AnswerBuilder:
    """Gathers the machine's actions into an :class:`Answer`."""

    request_id: str
    error: GktError | None = None
    records: list[UsageRecord] = field(default_factory=list)
    cached: bool = False
    _choices: dict[int, _Growing] = field(default_factory=dict)

    def add(self, action: Action) -> None:
        """Take note of ``action``, if it is about the answer."""
        if isinstance(action, Emit):
            choice = self._choice(action.choice)
            choice.texts.append(action.text)
            if action.role == "teacher":
                choice.guidance.append(action.text)
        elif isinstance(action, Finish):
            choice = self._choice(action.choice)
            choice.notes, choice.finish_reason = action.notes, action.finish_reason
        elif isinstance(action, FailChoice):
            choice = self._choice(action.choice)
            choice.notes, choice.error = action.notes, action.error
        elif isinstance(action, FailRequest):
            self.error = action.error

    def build(self, guidance_tokens: int = 0) -> Answer:
        choices = tuple(
            Choice("".join(c.texts), "".join(c.guidance), c.finish_reason, c.notes, c.error)
            for _, c in sorted(self._choices.items())
        )
        return Answer(
            self.request_id,
            () if self.error else choices,
            self.error,
            tuple(self.records),
            self.cached,
            guidance_tokens,
        )

    def _choice(self, number: int) -> _Growing:
        choice = self._choices.get(number)
        if choice is None:
            choice = self._choices[number] = _Growing()
        return choice
