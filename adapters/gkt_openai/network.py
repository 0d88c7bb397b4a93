"""TCP and TLS for httpcore2, on asyncio's own transports.

What httpcore2 brings goes through anyio, which costs as much as the rest of a short call. Here a read that finds bytes
does not wait, and what a request writes goes out in one packet.
"""

# ruff: noqa: ASYNC109 - the signatures are httpcore2's

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore2

__all__ = ["LoopBackend"]

_HIGH_WATER_BYTES = 2**18
"""The peer is held up while more than this waits to be read."""
_HELD_BYTES = 2**16
"""So much is written before anything is read goes out at once."""


class LoopBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections on the running event loop."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        local = None if local_address is None else (local_address, 0)
        try:
            async with asyncio.timeout(timeout):
                _, stream = await loop.create_connection(_Stream, host, port, local_addr=local)
        except TimeoutError as exc:
            raise httpcore2.ConnectTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpcore2.ConnectError(str(exc)) from exc
        return stream

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore2.AsyncNetworkStream, asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._ended = False
        """The peer sends no more."""
        self._lost: Exception | None = None

    # --------------------------------------------------------------------------------------- what httpcore2 asks for

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            self._flush()
        if not self._received and not self._ended:
            await self._wait(timeout)
        if self._received:
            if len(self._received) <= max_bytes:
                data = bytes(self._received)
                self._received.clear()
            else:
                data = bytes(self._received[:max_bytes])
                del self._received[:max_bytes]
            if self._paused and self._transport is not None:
                self._paused = False
                self._transport.resume_reading()
            return data
        if self._lost is not None:
            raise httpcore2.ReadError(str(self._lost)) from self._lost
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        if self._transport is None or self._transport.is_closing():
            raise httpcore2.WriteError("the connection is closed")
        self._held.append(buffer)
        self._held_bytes += len(buffer)
        if self._held_bytes >= _HELD_BYTES:
            self._flush()
            if self._writable is not None:
                try:
                    async with asyncio.timeout(timeout):
                        await self._writable
                except TimeoutError as exc:
                    raise httpcore2.WriteTimeout(str(exc)) from exc

    async def aclose(self) -> None:
        if self._transport is not None:
            self._transport.abort()  # a response is read to its end, or not wanted

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        assert self._transport is not None
        try:
            async with asyncio.timeout(timeout):
                transport = await self._loop.start_tls(
                    self._transport, self, ssl_context, server_hostname=server_hostname
                )
        except TimeoutError as exc:
            self._transport.abort()
            raise httpcore2.ConnectTimeout(str(exc)) from exc
        except OSError as exc:  # ssl.SSLError is one
            self._transport.abort()
            raise httpcore2.ConnectError(str(exc)) from exc
        if transport is None:
            raise httpcore2.ConnectError("the connection was lost while it was secured")
        self._transport = transport
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # of an idle connection: the peer has closed it, or speaks unasked
            return self._ended or bool(self._received)
        return None if self._transport is None else self._transport.get_extra_info(info)

    # ----------------------------------------------------------------------------------------- what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._lost = exc
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # ------------------------------------------------------------------------------------------------------- within

    def _flush(self) -> None:
        held, self._held, self._held_bytes = b"".join(self._held), [], 0
        if self._transport is not None:
            self._transport.write(held)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _wait(self, timeout: float | None) -> None:
        """Until something has been received, or the peer has ended."""
        self._reader = self._loop.create_future()
        late = None if timeout is None else self._loop.call_later(timeout, self._too_late, self._reader)
        try:
            await self._reader
        finally:
            self._reader = None
            if late is not None:
                late.cancel()

    @staticmethod
    def _too_late(reader: asyncio.Future[None]) -> None:
        if not reader.done():
            reader.set_exception(httpcore2.ReadTimeout("nothing was received in time"))
