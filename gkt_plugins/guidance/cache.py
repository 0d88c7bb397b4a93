"""The guidance cache: the teacher's text per exact prompt and policy, for requests whose text is reproducible.

A stage before the teacher: what is there is used and costs nothing, and of identical requests that come together only
one asks (:mod:`~gkt_plugins.guidance.single_flight`). It is a help and never a condition: a store that cannot be
reached is left alone for a while, with one warning, and requests go on as if there were no cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from gkt_plugins.contracts import Call, Engine, FinishReason, Usage

__all__ = ["CACHE_VERSION", "Guidance", "GuidanceCache", "GuidanceStore", "cache_key"]

CACHE_VERSION = 1
"""Part of every key: what is kept, or how keys are made, has changed where this has."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """What the teacher wrote for one call, before any cut."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    """As the teacher reported it, or estimated."""
    notes: tuple[str, ...] = ()


class GuidanceStore(Protocol):
    """Where guidance is kept. Any error means that it cannot be reached now."""

    async def get(self, key: str) -> bytes | None:
        """The value under ``key``; None: there is none."""
        ...

    async def put(self, values: Mapping[str, bytes], max_age_s: int | None) -> None:
        """Keep the values, durably where the store can; they may be forgotten after ``max_age_s``."""
        ...

    async def aclose(self) -> None: ...


class Claim(Protocol):
    """The right, and the duty, to ask the teacher for others too; ended by one of its methods, the first that comes."""

    def keep(self, guidance: Guidance) -> None:
        """The teacher has answered: hand it to those who wait, and keep it."""
        ...

    def give_up(self, *, failed: bool) -> None:
        """There will be no text. ``failed``: the teacher failed, so that all who wait ask for themselves at once;
        otherwise the request was cancelled, and one of them asks for the others."""
        ...


class GuidanceCache:
    """One store, shared by all pipelines of a process."""

    def __init__(
        self,
        store: GuidanceStore,
        *,
        where: str = "",
        max_age_s: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``where``: the store's name for messages, without a password. ``clock``: seconds since the epoch."""
        raise NotImplementedError

    async def claim(self, key: str) -> Guidance | Claim:
        """What is known under ``key``, perhaps after waiting for another request that asks; else the claim to ask."""
        raise NotImplementedError

    async def check(self) -> None:
        """:raises BackendError: the store cannot be read and written."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Write what waits, and let go of the store. Safe to call twice."""
        raise NotImplementedError


def cache_key(engine: Engine, call: Call, cutting: str) -> str | None:
    """The key of a teacher's ``call``; None: its text is drawn anew each time, so that it is not kept.

    Kept are calls at temperature 0, and sampled ones with a seed.
    """
    raise NotImplementedError
