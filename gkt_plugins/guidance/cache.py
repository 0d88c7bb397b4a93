"""The guidance cache: the teacher's text per exact prompt and policy, for requests whose text is reproducible.

A stage before the teacher: what is there is used and costs nothing, and of identical requests that come together only
one asks. It is a help and never a condition: a store that cannot be reached is left alone for a while, with one
warning, and requests go on as if there were no cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gkt_plugins.contracts import Call, Engine, FinishReason, Sampling, Usage
from gkt_plugins.errors import BackendError, ConfigError
from gkt_plugins.guidance.breaker import Breaker
from gkt_plugins.guidance.single_flight import Flight, Landed, SingleFlight

if TYPE_CHECKING:
    from gkt_plugins.config.sections import CacheSection

__all__ = ["CACHE_VERSION", "Claim", "Guidance", "GuidanceCache", "GuidanceStore", "cache_key", "open_cache"]

_log = logging.getLogger(__name__)

CACHE_VERSION = 1
"""Part of every key: what is kept, or how keys are made, has changed where this has."""

_WRITE_S = 10.0

_PAUSE_S = 10.0
"""How long a store is left alone that could not be reached."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """What the teacher wrote for one call, before any cut."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    """As the teacher reported it, or estimated."""
    notes: tuple[str, ...] = ()


class GuidanceStore(Protocol):
    """Where guidance is kept. Any exception means that it cannot be reached now."""

    async def get(self, key: str) -> bytes | None:
        """The value under ``key``; None: there is none."""
        ...

    async def put(self, values: Mapping[str, bytes], max_age_s: int | None) -> None:
        """Keep the values; they may be forgotten after ``max_age_s``."""
        ...

    async def aclose(self) -> None: ...


class Claim:
    """The right, and the duty, to ask the teacher, for those too who want the same. The first ending counts."""

    def __init__(self, cache: GuidanceCache, key: str, flight: Flight[Guidance]) -> None:
        self._cache = cache
        self._key = key
        self._flight = flight

    def keep(self, guidance: Guidance) -> None:
        """The teacher has answered: hand it to those who wait, and keep it."""
        if not self._flight.over.is_set():
            self._flight.land(guidance)
            self._cache.write(self._key, guidance)

    def give_up(self, *, failed: bool) -> None:
        """There will be no text: the teacher ``failed``, or this request has gone away."""
        self._flight.give_up(failed=failed)


class GuidanceCache:
    """One store, shared by all pipelines of a process."""

    def __init__(
        self,
        store: GuidanceStore,
        *,
        where: str = "the store",
        max_age_s: int | None = None,
        read_timeout_s: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``where``: the store's name for messages, without a password. ``clock``: seconds since the epoch.

        ``read_timeout_s``: a store that takes longer to answer does not help.
        """
        self._store = store
        self._where = where
        self._max_age_s = max_age_s
        self._read_timeout_s = read_timeout_s
        self._clock = clock
        self._flights: SingleFlight[Guidance] = SingleFlight()
        self._breaker = Breaker(1, _PAUSE_S, time.monotonic)
        self._warned = False
        self._waiting: dict[str, bytes] = {}
        self._writer: asyncio.Task[None] | None = None
        self.lost = 0
        """Entries that could not be written."""

    async def claim(self, key: str) -> Guidance | Landed[Guidance] | Claim:
        """What is known under ``key``: kept, or just asked for by another request that this one waited for.

        Otherwise the claim to ask.
        """
        joined = await self._flights.join(key)
        if isinstance(joined, Landed):
            return joined
        try:
            known = await self._read(key)
        except BaseException:
            joined.give_up(failed=False)
            raise
        if known is None:
            return Claim(self, key, joined)
        joined.land(known)
        return known

    async def has(self, key: str) -> bool:
        """Whether something is kept under ``key``, and not too old."""
        return await self._read(key) is not None

    def write(self, key: str, guidance: Guidance) -> None:
        """Keep it under ``key``, soon; :meth:`aclose` waits for it."""
        self._waiting[key] = _encoded(guidance, self._clock())
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())

    async def check(self) -> None:
        """:raises BackendError: the store cannot be read and written."""
        try:
            async with asyncio.timeout(_WRITE_S):
                await self._store.get("check")
                await self._store.put({"check": b""}, 60)
        except Exception as exc:  # a store may be someone else's code
            raise BackendError(f"the guidance cache at {self._where} cannot be used: {_told(exc)}") from exc

    async def aclose(self) -> None:
        """Write what waits, and let go of the store. Safe to call twice."""
        if self._writer is not None:
            await self._writer
        try:
            await self._store.aclose()
        except Exception as exc:  # noqa: BLE001 - it is left anyway
            self._unreachable(exc)

    async def _read(self, key: str) -> Guidance | None:
        if not self._breaker.admit():
            return None
        try:
            async with asyncio.timeout(self._read_timeout_s):
                value = await self._store.get(key)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the request goes on without
            self._unreachable(exc)
            return None
        except BaseException:
            self._breaker.dropped()
            raise
        self._reached()
        return None if value is None else self._decoded(value)

    async def _write_all(self) -> None:
        """Write what has gathered while the last write ran."""
        while self._waiting:
            values, self._waiting = self._waiting, {}
            if not self._breaker.admit():
                self.lost += len(values)
                continue
            try:
                async with asyncio.timeout(_WRITE_S):
                    await self._store.put(values, self._max_age_s)
            except Exception as exc:  # noqa: BLE001 - as in _read
                self.lost += len(values)
                self._unreachable(exc)
            else:
                self._reached()

    def _decoded(self, value: bytes) -> Guidance | None:
        try:
            kept = json.loads(value)
            if self._max_age_s is not None and self._clock() - kept["made_at"] > self._max_age_s:
                return None
            return Guidance(kept["text"], kept["finish_reason"], Usage(**kept["usage"]), tuple(kept["notes"]))
        except (ValueError, KeyError, TypeError) as exc:
            _log.warning("an entry of the guidance cache at %s is no guidance, and is replaced: %r", self._where, exc)
            return None

    def _unreachable(self, exc: Exception) -> None:
        self._breaker.failed()
        if not self._warned:
            self._warned = True
            _log.warning("the guidance cache at %s cannot be used, so nothing is cached: %s", self._where, _told(exc))

    def _reached(self) -> None:
        self._breaker.succeeded()
        if self._warned:
            self._warned = False
            _log.info("the guidance cache at %s can be used again", self._where)


def cache_key(engine: Engine, call: Call, cutting_name: str) -> str | None:
    """The key of a teacher's ``call``; None: its text is drawn anew each time, so that it is not kept.

    Kept are calls at temperature 0, and sampled ones with a seed.
    """
    sampling = {name: number(getattr(call.sampling, name)) for name, number in _SAMPLING.items()}
    if call.sampling.temperature == 0:
        sampling["seed"] = None  # nothing is drawn
    elif call.sampling.seed is None:
        return None
    content = {
        "version": CACHE_VERSION,
        "engine": [engine.name, engine.model],
        "text": call.prompt.text,
        "messages": [[message.role, message.content] for message in call.prompt.messages],
        "prefix": call.prefix,
        "sampling": sampling,
        "cutting": cutting_name,
    }
    try:
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError):
        return None  # an option that only an in-process engine can take
    return hashlib.sha256(canonical.encode()).hexdigest()


def _as_it_is(value: object) -> object:
    return value


_SAMPLING = {field.name: float if isinstance(field.default, float) else _as_it_is for field in fields(Sampling)}
"""What is told apart, and how: a temperature of 1 is one of 1.0."""


def open_cache(section: CacheSection, base_dir: Path, env: Mapping[str, str] | None = None) -> GuidanceCache:
    """The cache that ``[cache]`` describes; nothing is connected yet. ``env`` stands in for ``os.environ``.

    :raises ConfigError: its URL names no kind of store that there is.
    :raises MissingDependencyError: the store's client is not installed.
    """
    url = section.resolved_url(os.environ if env is None else env)
    scheme, separator, rest = url.partition("://")
    store: GuidanceStore
    if scheme == "sqlite" and rest.startswith("/") and rest.strip("/") and not rest.startswith("/:memory:"):
        from gkt_plugins.guidance.cache_sqlite import SqliteStore

        path = base_dir / rest[1:]
        return GuidanceCache(SqliteStore(path), where=str(path), max_age_s=section.max_age_s)
    if scheme in ("redis", "rediss", "unix") and separator:
        from gkt_plugins.guidance.cache_redis import RedisStore, without_password

        store = RedisStore(url)
        return GuidanceCache(store, where=without_password(url), max_age_s=section.max_age_s)
    raise ConfigError(
        f"cache.url must be sqlite:///FILE or redis://HOST, got one that begins with {scheme[:20]!r}; correct [cache]"
    )


def _encoded(guidance: Guidance, now: float) -> bytes:
    return json.dumps(asdict(guidance) | {"made_at": now}).encode()


def _told(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
