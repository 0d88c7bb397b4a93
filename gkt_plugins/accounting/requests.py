"""One row per request of a client, beside the rows of its engine calls: what the client got, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["RequestRecord"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What became of one request. Never any text; seconds that were not measured are None, never 0."""

    request_id: str
    """As in the :class:`~gkt_plugins.contracts.UsageRecord` of its calls."""
    pipeline: str
    key: str
    """Name of the client's key; "" where no key was asked for. Never the key."""
    started_at: float
    """Seconds since the epoch, UTC."""
    route: str
    """``guided``, ``teacher``, ``student`` or ``forwarded``."""
    status: Literal["ok", "error", "refused", "cancelled"]
    """``refused``: answered with an error before any engine was called. ``cancelled``: the client went away."""
    error: str = ""
    """A code such as ``upstream_timeout``; "" where there is none."""
    streamed: bool = False
    choices: int = 1
    guidance_tokens: int = 0
    """Teacher tokens handed over, at least 0."""
    degraded: bool = False
    cached: bool = False
    """True: the guidance came from the cache."""
    first_token_s: float | None = None
    """From the request's arrival to the first text that went out."""
    total_s: float | None = None
    """From the request's arrival to its end."""
    teacher_s: float | None = None
    """Time in which a teacher call was under way."""
    student_s: float | None = None
    overhead_s: float | None = None
    """The rest of ``total_s``: time in which no engine call was under way."""
    retries: int = 0
    """Attempts beyond the first, over all calls."""
