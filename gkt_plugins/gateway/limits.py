"""How much may come: requests per minute, and bytes per request."""

from __future__ import annotations

import asyncio
import math
import mmap
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from gkt_plugins.gateway.access import Client
from gkt_plugins.gateway.refusals import RefusedError

__all__ = ["RateLimits", "TokenBucket", "read_body"]

_HELD, _COUNTED_AT = 0, 1
_DOUBLE = 8


class TokenBucket:
    """Lets ``per_minute`` requests through in a minute: holds that many, and refills evenly.

    What it holds is in memory that processes forked afterwards share, so that the workers of one gateway keep one
    limit. There is no lock: two workers that count in the same microsecond may count one request too few, and a worker
    that dies can never stop the others.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds, never going back."""
        self.per_minute = per_minute
        self._per_second = per_minute / 60
        self._clock = clock
        self._shared = memoryview(mmap.mmap(-1, 2 * _DOUBLE)).cast("d")
        self._shared[_HELD], self._shared[_COUNTED_AT] = float(per_minute), clock()

    def wait_s(self) -> float:
        """Seconds until one more request may pass; 0: now."""
        shared, now = self._shared, self._clock()
        passed_s = max(0.0, now - shared[_COUNTED_AT])  # another worker may just have counted
        held = shared[_HELD] = min(float(self.per_minute), shared[_HELD] + passed_s * self._per_second)
        shared[_COUNTED_AT] = now
        return 0.0 if held >= 1 else (1 - held) / self._per_second

    def take(self) -> None:
        """Let one request pass; after :meth:`wait_s` has answered 0."""
        self._shared[_HELD] -= 1


class RateLimits:
    """Requests per minute, of one client and of all. Counted by this gateway, all of its workers together."""

    def __init__(
        self, total_per_minute: int | None, clients: Iterable[Client], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``total_per_minute``: of all clients together; None: no limit."""
        self._total = None if total_per_minute is None else TokenBucket(total_per_minute, clock=clock)
        self._by_client = {
            client.name: TokenBucket(client.requests_per_minute, clock=clock)
            for client in clients
            if client.requests_per_minute is not None
        }

    def admit(self, client: Client) -> None:
        """Count one request. What is refused is not counted.

        :raises RefusedError: 429 with ``retry-after``.
        """
        own = self._by_client.get(client.name)
        if own is not None and (wait_s := own.wait_s()):
            raise _too_many(f"the key {client.name!r}", own.per_minute, wait_s)
        if self._total is not None:
            if wait_s := self._total.wait_s():
                raise _too_many("all clients of this gateway together", self._total.per_minute, wait_s)
            self._total.take()
        if own is not None:
            own.take()


async def read_body(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    *,
    max_bytes: int,
    timeout_s: float = 60.0,
) -> bytes:
    """The body of the request. ``scope``, ``receive``: of ASGI. ``timeout_s``: for all of it to arrive.

    :raises RefusedError: 413, it is larger than ``max_bytes``: before reading any of it where its length is announced,
        else as soon as that shows; 408, it did not arrive in time.
    :raises ClientDisconnect: the client went away while sending.
    """
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise RefusedError(
            f"the request's body must arrive within {timeout_s:g} s, and {size} bytes of it did; send it again",
            status=408,
            code="request_timeout",
        ) from None


def _too_large(max_bytes: int) -> RefusedError:
    return RefusedError(
        f"the request's body may have {max_bytes} bytes at most, and is larger; "
        "send less, or raise gateway.max_body_bytes",
        status=413,
        code="request_too_large",
    )


def _too_many(who: str, per_minute: int, wait_s: float) -> RefusedError:
    return RefusedError(
        f"{who} may send {per_minute} requests per minute, and this one is beyond that; retry in {wait_s:.1f} s",
        status=429,
        code="rate_limit_exceeded",
        kind="requests",
        retry_after_s=wait_s,
        headers={"retry-after-ms": str(math.ceil(wait_s * 1000))},
    )
