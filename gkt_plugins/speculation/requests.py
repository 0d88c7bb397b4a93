"""What goes into the decode loop, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from gkt_plugins.contracts import FinishReason, Sampling
from gkt_plugins.errors import GktError
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.sampling import LogitsProcessor

__all__ = ["DecodeRequest", "DecodeResult", "RequestError", "StoppingCriterion"]

StoppingCriterion: TypeAlias = Callable[[Tensor, Any], Any]
"""As in transformers: (ids [1, n], scores) → true when the row is done. Scores are always None here."""


class RequestError(GktError):
    """One request cannot be decoded, or could not be finished; the others go on."""


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """One row: token ids to continue, and how."""

    token_ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    eos_ids: tuple[int, ...] = ()
    """Tokens that end the answer; the one that did is its last token."""
    processors: Sequence[LogitsProcessor] = ()
    """Run on the logits of every position, also of drafted ones, before temperature; they see this row's ids alone."""
    criteria: Sequence[StoppingCriterion] = ()
    """Asked after every token of the answer."""
    request_id: str = ""


@dataclass(slots=True)
class DecodeResult:
    """A finished row. With an ``error``, ``token_ids`` is what had been computed until then."""

    request: DecodeRequest
    token_ids: list[int] = field(default_factory=list)
    """The answer alone, ending with the end-of-sequence token or with the token that completed a stop string."""
    finish_reason: FinishReason | None = None
    """None with an error."""
    stop: str | None = None
    """The stop string that was found; text from it on is not part of the answer."""
    counts: Counts = field(default_factory=Counts)
    error: GktError | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """Share of the loop's wall time: each step is split by the tokens that rows gained, so that shares add up to it."""
