"""How often a call is tried, with what waits between, and which engines are left alone for a while.

One object serves all requests of a process, so that what one of them learnt of an engine spares the others. The driver
asks; nothing here calls an engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential

from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.breaker import Breaker

if TYPE_CHECKING:
    from gkt_plugins.config.sections import RetriesSection

__all__ = ["LONGEST_RETRY_AFTER_S", "Attempts"]

LONGEST_RETRY_AFTER_S = 60.0
"""An engine that asks for a longer wait is not asked again by the same request."""


class Attempts:
    """The ``[retries]`` of a configuration at work, with a circuit breaker for each engine by name."""

    def __init__(
        self,
        *,
        attempts: int = 3,
        wait_s: float = 0.2,
        max_wait_s: float = 5.0,
        breaker_failures: int = 5,
        breaker_pause_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """The keys of ``[retries]``, with their meaning there. ``clock`` and ``sleep`` stand in for the real ones."""
        self._attempts = attempts
        # drawn from 0 to twice the mean, so that many callers do not come back together
        self._backoff = wait_random_exponential(multiplier=2 * wait_s, max=max_wait_s)
        self._breaker_failures = breaker_failures
        self._breaker_pause_s = breaker_pause_s
        self._clock = clock
        self.sleep = sleep
        self._breakers: dict[str, Breaker] = {}

    @classmethod
    def from_section(cls, section: RetriesSection) -> Attempts:
        """As ``[retries]`` says."""
        return cls(**section.model_dump())

    def breaker(self, engine: str) -> Breaker:
        """The breaker of the engine of this name."""
        found = self._breakers.get(engine)
        if found is None:
            found = self._breakers[engine] = Breaker(self._breaker_failures, self._breaker_pause_s, self._clock)
        return found

    @property
    def circuits(self) -> dict[str, bool]:
        """Name of every engine that was called → it is being left alone."""
        return {engine: breaker.is_open for engine, breaker in self._breakers.items()}

    def refusal(self, engine: str) -> EngineError | None:
        """Why no call may go out to ``engine`` now; None: one may, and the breaker is told how it ends."""
        breaker = self.breaker(engine)
        if breaker.admit():
            return None
        remaining_s = breaker.remaining_s
        return EngineError(
            f"the engine {engine!r} failed {self._breaker_failures} times in a row and is left alone for "
            f"{remaining_s:.0f} s; try again later",
            retryable=True,
            retry_after_s=remaining_s,
            refused=True,
        )

    def wait_s(self, engine: str, error: EngineError, attempt: int) -> float | None:
        """How long to wait after attempt number ``attempt``, from 0, ended with ``error``; None: do not try again."""
        if not error.retryable or attempt + 1 >= self._attempts or self.breaker(engine).is_open:
            return None
        asked_s = error.retry_after_s or 0.0
        if asked_s > LONGEST_RETRY_AFTER_S:
            return None
        state = RetryCallState(AsyncRetrying(), None, (), {})
        state.attempt_number = attempt + 1
        return max(asked_s, self._backoff(state))
