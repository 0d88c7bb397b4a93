"""Accounting and traces: what was used, what it costs, what happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from gkt_plugins.contracts._engines import Usage

__all__ = ["AHEAD", "GUIDANCE_CACHE", "Price", "PriceSource", "Role", "TraceEvent", "UsageRecord"]

Role: TypeAlias = Literal["teacher", "student", "target", "draft"]

GUIDANCE_CACHE = "guidance cache"
"""``price_source`` of a teacher's record whose text came from the guidance cache: it has tokens, and costs nothing."""

AHEAD = " (ahead)"
"""Ends the ``pipeline`` of a record whose guidance was asked for ahead of time: money spent, and no answer yet."""


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one model, in integer nano-units of ``currency``. None is *unknown*, never zero.

    Per token: ``input_nano`` and ``output_nano`` are nano-units per *million* tokens (exact for decimal price lists);
    ``cached_input_nano`` defaults to the input price. Per hour of own hardware: ``hour_nano``.
    """

    currency: str = "USD"
    input_nano: int | None = None
    output_nano: int | None = None
    cached_input_nano: int | None = None
    hour_nano: int | None = None
    source: str = "config"
    max_prompt_tokens: int | None = None
    """Longest prompt that the price per token holds for; a longer one costs something unknown."""


class PriceSource(Protocol):
    """Where prices come from."""

    def price(self, model: str) -> Price | None:
        """The price of ``model``; None when this source does not know it."""
        ...


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One engine call and attempt. Never any text."""

    request_id: str
    call: int
    """Number of the call within the request and role, from 0."""
    role: Role
    attempt: int
    """From 0; a retry is a new attempt and a new record."""
    engine: str
    model: str
    status: Literal["open", "final", "failed", "cancelled", "interrupted"]
    usage: Usage = field(default_factory=Usage)
    currency: str = "USD"
    cost_nano: int | None = None
    """None: the price is unknown."""
    price_source: str | None = None
    started_at: float = 0.0
    """Seconds since the epoch, UTC."""
    pipeline: str = ""


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One verified block of one row, or the last step of a row, for re-distilling from traffic. Off by default."""

    request_id: str
    token_ids: tuple[int, ...]
    """The row before the block: prompt and answer so far."""
    drafted: tuple[int, ...]
    """Empty in a step without speculation; only a row's last step is told then."""
    accepted: int
    """How many of ``drafted`` the verifier let pass."""
    kept: tuple[int, ...] = ()
    """What the row gained: the accepted tokens, then the target's own, cut where the answer ended."""
    prompt_tokens: int = 0
    """How many of ``token_ids`` are the prompt."""
    row: int = 0
    """Identity of the row within its decode loop."""
    finished: bool = False
    """The answer is complete. A row that is cancelled, or fails, is never said to be."""
