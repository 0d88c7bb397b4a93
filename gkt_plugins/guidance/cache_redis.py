"""Guidance in Redis, for several machines. It ages by Redis's own expiry, and is evicted as Redis is told to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gkt_plugins.errors import ConfigError, require

__all__ = ["RedisStore", "without_password"]

_PREFIX = "gkt:guidance:"

_CONNECTIONS = 32
"""More calls at a time wait for one; each takes well under a millisecond."""

_TIMEOUT_S = 1.0


class RedisStore:
    """A pool of connections, opened as they are needed."""

    def __init__(self, url: str) -> None:
        """:raises ConfigError: not a Redis URL. :raises MissingDependencyError: the client is not installed."""
        redis = require("redis.asyncio", extra="redis")
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=_TIMEOUT_S,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
            )
        except ValueError:
            raise ConfigError(
                f"cache.url must be such as redis://HOST:PORT/0, got {without_password(url)!r}; correct it in [cache]"
            ) from None  # the cause may quote the password
        self._client: Any = redis.Redis.from_pool(pool)

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = await self._client.get(_PREFIX + key)
        return value

    async def put(self, values: Mapping[str, bytes], max_age_s: int | None) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            for key, value in values.items():
                pipeline.set(_PREFIX + key, value, ex=max_age_s)
            await pipeline.execute()

    async def aclose(self) -> None:
        await self._client.aclose()


def without_password(url: str) -> str:
    """Scheme, host and path of ``url``: what may be shown."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("://")[0] + "://…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
