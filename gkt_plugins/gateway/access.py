"""Who may ask: virtual keys, and what stands in for them on a gateway that only this machine can reach.

Keys are random (256 bits) and kept as their SHA-256 alone. Without knowing a key nobody can choose its digest, so the
time that looking a digest up takes tells nothing that helps to find one; the comparison that decides is constant-time.
A slow password hash would add nothing to 256 random bits, and would be paid for on every request.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gkt_plugins.accounting.money import parse_nano
from gkt_plugins.errors import ConfigError
from gkt_plugins.gateway.refusals import RefusedError

if TYPE_CHECKING:
    from gkt_plugins.config import Config

__all__ = ["MIN_KEY_CHARACTERS", "Access", "Client", "is_loopback", "require_keys_beyond_loopback"]

MIN_KEY_CHARACTERS = 32
"""Shorter keys are never accepted: an unsalted digest protects only what cannot be guessed."""

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::\d{1,5})?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Client:
    """Whoever asks, as far as the gateway knows."""

    name: str = ""
    """Of ``[gateway.keys.NAME]``; empty where there are no keys."""
    admin: bool = False
    """May see ``/dashboard`` and ``/metrics``."""
    pipelines: frozenset[str] | None = None
    """Which it may use; None: all."""
    requests_per_minute: int | None = None
    budget_nano: int | None = None
    """Per day, in nano-units of the budget's currency; None: no limit of its own."""

    def may_use(self, pipeline: str) -> bool:
        """Whether ``pipeline`` is open to this client. One that is not looks like one that does not exist."""
        return self.pipelines is None or pipeline in self.pipelines


LOCAL = Client(admin=True)
"""Everybody, where there are no keys: only this machine can reach the gateway then."""

_NOBODY = (bytes(32), Client())


class Access:
    """Tells clients by their keys; where there are no keys, lets in what comes from this machine itself."""

    def __init__(self, clients: Mapping[bytes, Client]) -> None:
        """``clients``: SHA-256 of the key → who has it. Prefer :meth:`from_config`."""
        self._holders = {digest: (digest, client) for digest, client in clients.items()}

    @classmethod
    def from_config(cls, config: Config) -> Access:
        """The keys of ``[gateway.keys]``."""
        clients: dict[bytes, Client] = {}
        for name, section in config.gateway.keys.items():
            clients[bytes.fromhex(section.sha256)] = Client(
                name=name,
                admin=section.admin,
                pipelines=None if section.pipelines is None else frozenset(section.pipelines),
                requests_per_minute=section.requests_per_minute,
                budget_nano=None if section.budget_per_day is None else parse_nano(section.budget_per_day),
            )
        return cls(clients)

    @property
    def has_keys(self) -> bool:
        """False: everybody who gets through to the gateway may use it."""
        return bool(self._holders)

    @property
    def clients(self) -> tuple[Client, ...]:
        """Everybody who has a key."""
        return tuple(client for _, client in self._holders.values())

    def authenticate(self, scope: Mapping[str, Any]) -> Client:
        """Who sent the request. ``scope``: of ASGI.

        :raises RefusedError: 401, no key or a wrong one; 403, a gateway without keys was reached through a name or a
            web page that is not of this machine.
        """
        if not self._holders:
            _only_from_here(scope["headers"])
            return LOCAL
        scheme, _, credentials = _header(scope["headers"], b"authorization").partition(b" ")
        return self._holder(credentials.strip() if scheme.lower() == b"bearer" else b"")

    def authenticate_admin(self, scope: Mapping[str, Any]) -> Client:
        """As :meth:`authenticate`, for pages: a browser may send the key as the password of HTTP Basic.

        Never used for requests that cost money: a browser sends Basic credentials along with what other sites' pages
        ask of it.

        :raises RefusedError: as above; 403, the key is not an admin's.
        """
        if not self._holders:
            return self.authenticate(scope)
        scheme, _, credentials = _header(scope["headers"], b"authorization").partition(b" ")
        try:
            if scheme.lower() == b"basic":
                client = self._holder(_password(credentials.strip()))
            else:
                client = self.authenticate(scope)
        except RefusedError as exc:
            exc.headers["www-authenticate"] = 'Basic realm="gkt", charset="UTF-8"'
            raise
        if not client.admin:
            raise RefusedError(
                f"the key {client.name!r} may not see this page; "
                f"use an admin's key, or set gateway.keys.{client.name}.admin = true",
                status=403,
                code="admin_required",
                kind="permission_error",
            )
        return client

    def _holder(self, key: bytes) -> Client:
        digest = sha256(key).digest()
        kept, client = self._holders.get(digest, _NOBODY)
        if not hmac.compare_digest(digest, kept) or len(key) < MIN_KEY_CHARACTERS:
            raise RefusedError(
                "the key that came is not one of this gateway's; send one that its operator gave you"
                if key
                else "a key is needed and none came; send it as 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return client


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether ``host``, an address or a name, can only ever be this machine."""
    name = host.removeprefix("[").removesuffix("]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):  # reserved for loopback: RFC 6761, section 6.3
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def require_keys_beyond_loopback(host: str, access: Access) -> None:
    """:raises ConfigError: whoever reaches the network address ``host`` could spend money unasked."""
    if not access.has_keys and not is_loopback(host):
        raise ConfigError(
            f"gateway.host must be loopback, such as 127.0.0.1, while there are no keys, got {host!r}; "
            "make a key with: gkt keys new NAME"
        )


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The first value of a header, as ASGI servers give them: names in lower case; empty where it is missing."""
    return next((value for key, value in headers if key == name), b"")


def _password(credentials: bytes) -> bytes:
    """The password of HTTP Basic credentials; empty where they are malformed."""
    try:
        return b64decode(credentials, validate=True).partition(b":")[2]
    except Base64Error:
        return b""


def _only_from_here(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """A gateway without keys is for this machine's programs, not for pages of the web that its browser shows.

    Such a page can point a name of its own at 127.0.0.1 (DNS rebinding), which shows in ``Host``, or send a request
    across sites, which browsers mark with ``Origin``.
    """
    host = _header(headers, b"host").decode("latin-1")
    match = _HOST.fullmatch(host)
    if match is None or not is_loopback(match["name"]):
        raise RefusedError(
            f"without keys this gateway answers to localhost only, and was called {host[:100]!r}; "
            "call it http://127.0.0.1, or give it keys with: gkt keys new NAME",
            status=403,
            code="host_not_allowed",
            kind="permission_error",
        )
    origin = _header(headers, b"origin").decode("latin-1")
    if origin and not is_loopback(_host_of(origin)):
        raise RefusedError(
            f"without keys this gateway answers to pages of this machine only, and one of {origin[:100]!r} asks; "
            "give it keys with: gkt keys new NAME",
            status=403,
            code="origin_not_allowed",
            kind="permission_error",
        )


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""
