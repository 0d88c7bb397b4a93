"""HTTP to one endpoint: prepared headers, bounded concurrency, and errors of one sentence that never hold the key."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpcore2
import httpx2

from gkt_openai.connections import Connections
from gkt_openai.errors import EndpointError, refusal
from gkt_openai.options import OpenAIOptions
from gkt_plugins import __version__
from gkt_plugins.contracts import BuildContext
from gkt_plugins.errors import ConfigError
from gkt_plugins.propagation import trace_headers

__all__ = ["Endpoint", "api_key"]

_MAX_BODY_BYTES = 64 * 2**20
"""A whole response is never larger, so that an endpoint cannot fill the memory."""

_TIMEOUTS = (httpcore2.TimeoutException, httpx2.TimeoutException)
_UNREACHED = (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpx2.ConnectError, httpx2.ConnectTimeout,
              httpcore2.ProxyError, httpx2.ProxyError)  # fmt: skip
_BROKEN = (httpcore2.NetworkError, httpcore2.ProtocolError, httpx2.TransportError, *_TIMEOUTS, *_UNREACHED)


def api_key(options: OpenAIOptions, context: BuildContext) -> str | None:
    """The key, from the environment. :raises ConfigError: the variable is not set."""
    if options.api_key_env is None:
        return None
    key = context.env.get(options.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"engines.{context.name}.api_key_env names {options.api_key_env}, and that environment variable is not "
            f"set; set it to the key of {options.base_url}"
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"the environment variable {options.api_key_env} must hold a key, and holds characters that no key has; "
            f"set it again"
        )
    return key


class Endpoint:
    """Sends JSON, gives back JSON or the bytes of a stream."""

    def __init__(self, options: OpenAIOptions, context: BuildContext) -> None:
        """``context.resources`` may lend ``http_transport``, an ``httpx2.AsyncBaseTransport`` in place of the network.

        :raises ConfigError: the key is not there, or ``ca_file`` cannot be read.
        """
        self.name = context.name or options.model
        self._base_url = options.base_url
        self._key = api_key(options, context)
        self._key_env = options.api_key_env
        self._urls: dict[str, httpx2.URL] = {}
        self._timeout_s = options.connect_timeout_s, options.read_timeout_s
        timeout = {"connect": options.connect_timeout_s, "read": options.read_timeout_s}
        self._extensions = {"timeout": timeout | {"write": options.read_timeout_s, "pool": options.read_timeout_s}}
        self._transport: httpx2.AsyncBaseTransport = context.resources.get("http_transport") or _transport(
            options, context
        )
        headers = {
            "host": httpx2.URL(options.base_url).netloc.decode("ascii"),
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "accept-encoding": "identity",
            "user-agent": f"gkt-plugins/{__version__}",
            **{name.lower(): value for name, value in options.headers.items()},
        }
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        self._headers = [(name.encode("ascii"), value.encode()) for name, value in headers.items()]

    def __repr__(self) -> str:
        return f"Endpoint({self._base_url!r})"

    @asynccontextmanager
    async def opened(self, path: str, body: Mapping[str, Any] | None) -> AsyncIterator[httpx2.Response]:
        """The response to ``body``, or to a GET where that is None, whatever its status; its body is still to be read.

        Leaving the block ends the request. :raises EndpointError: there is no response, or it breaks off.
        """
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = httpx2.URL(self._base_url + path)
        headers = self._headers
        if linked := trace_headers.get():
            headers = [*headers, *((name.encode(), value.encode()) for name, value in linked.items())]
        if body is None:
            request = httpx2.Request("GET", url, headers=headers, extensions=self._extensions)
        else:
            content = _encoded(body)
            headers = [*headers, (b"content-length", b"%d" % len(content))]
            request = httpx2.Request(  # a stream is taken as it is, where content would be looked at again
                "POST", url, headers=headers, stream=httpx2.ByteStream(content), extensions=self._extensions
            )
        try:
            response = await self._transport.handle_async_request(request)
            try:
                yield response
            finally:
                await response.stream.aclose()  # type: ignore[union-attr]  # asynchronous, as its transport is
        except _BROKEN as exc:
            raise self._broken(exc) from exc

    async def json(self, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Status and body of the response to ``body``, or to a GET. :raises EndpointError: there is none."""
        async with self.opened(path, body) as response:
            return response.status_code, await self.read(response)

    async def read(self, response: httpx2.Response) -> bytes:
        """The whole body. :raises EndpointError: it is larger than an answer can be."""
        parts, size = [], 0
        async for part in response.stream:  # type: ignore[union-attr]
            parts.append(part)
            size += len(part)
            if size > _MAX_BODY_BYTES:
                raise EndpointError(
                    f"the endpoint of engine {self.name!r} sent more than {_MAX_BODY_BYTES} bytes for one answer; "
                    f"look at what answers there",
                    code="upstream_corrupt",
                )
        return b"".join(parts)

    async def refused(self, response: httpx2.Response) -> EndpointError:
        """The error for a response whose status is not 200."""
        body = await self.read(response)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return refusal(self.name, response.status_code, headers, body, key=self._key, key_env=self._key_env)

    async def aclose(self) -> None:
        await self._transport.aclose()

    def _broken(self, exc: Exception) -> EndpointError:
        connect_s, read_s = self._timeout_s
        where = f"the endpoint of engine {self.name!r}"
        if isinstance(exc, _UNREACHED):
            late = isinstance(exc, _TIMEOUTS)
            what = f"did not take a connection within {connect_s:g} s" if late else "cannot be reached"
            return EndpointError(
                f"{where} {what} at {self._base_url}; see that it runs, and engines.{self.name}.base_url",
                code="upstream_unreachable",
                retryable=True,
                refused=True,
            )
        if isinstance(exc, _TIMEOUTS):
            return EndpointError(
                f"{where} was silent for {read_s:g} s; see that it is well, or raise "
                f"engines.{self.name}.read_timeout_s",
                code="upstream_timeout",
                retryable=True,
            )
        return EndpointError(
            f"the connection to {where} broke before its answer was complete ({type(exc).__name__}); try again",
            code="upstream_broken",
            retryable=True,
        )


def _encoded(body: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8. Lone surrogates, which no UTF-8 has, become question marks, as in any other text that is sent."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _transport(options: OpenAIOptions, context: BuildContext) -> httpx2.AsyncBaseTransport:
    trusted: ssl.SSLContext | None = None
    if options.ca_file is not None:
        path = (context.base_dir / options.ca_file) if context.base_dir else options.ca_file
        try:
            trusted = ssl.create_default_context(cafile=path)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(
                f"engines.{context.name}.ca_file must name a PEM file of certificates, got {options.ca_file!r}: {exc}"
            ) from exc
    if options.proxy is not None:
        return httpx2.AsyncHTTPTransport(
            verify=trusted or True, proxy=options.proxy, trust_env=False, limits=httpx2.Limits(max_connections=None)
        )
    if trusted is None and options.base_url.startswith("https:"):
        trusted = httpx2.create_ssl_context()
    return Connections(options.base_url, ssl_context=trusted)
