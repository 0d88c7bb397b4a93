"""What guidance cannot serve (tools, structured output, …) goes to the student's engine untouched, and whole."""

from __future__ import annotations

import asyncio
from typing import Any

from gkt_plugins.contracts import Forwarder, UsageRecord
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.exchange import Parts, as_engine_error
from gkt_plugins.openai_wire.forwarded import ForwardedCall, forwarded_provenance, unserved
from gkt_plugins.openai_wire.requests import Asked

__all__ = ["Forwarding"]


class Forwarding:
    """One line on its way to the student's engine and back."""

    def __init__(self, asked: Asked, parts: Parts, *, degraded: bool = False) -> None:
        """``degraded``: a budget left it less than was asked for."""
        self._asked = asked
        self._parts = parts
        self._degraded = degraded
        self.records: list[UsageRecord] = []
        """One per attempt that is over."""

    async def answer(self) -> dict[str, Any]:
        """The engine's response, with the model that was asked for and a ``gkt`` object.

        :raises InvalidRequest: the engine takes text only.
        :raises EngineError: it failed as often as it may be tried.
        :raises BackendError: the ledger cannot be written.
        """
        student = self._parts.student
        if not isinstance(student, Forwarder):
            raise unserved(self._asked, self._parts)
        while True:
            attempt = len(self.records)
            try:
                found = await self._attempt(student, attempt)
            except EngineError as exc:
                wait_s = self._parts.attempts.wait_s(student.name, exc, attempt)
                if wait_s is None:
                    raise
                await self._parts.attempts.sleep(wait_s)
            else:
                told = forwarded_provenance(self._asked, self._parts, self.records, degraded=self._degraded)
                return {**found, "model": self._asked.model, "gkt": told.as_json()}

    async def _attempt(self, forwarder: Forwarder, attempt: int) -> dict[str, Any]:
        call = ForwardedCall(self._parts, self._asked.requests[0], attempt, records=self.records)
        await call.open()
        try:
            found = await self._ask(forwarder, call)
        except asyncio.CancelledError:
            await call.close("cancelled")
            raise
        except Exception as exc:  # noqa: BLE001 - an engine is someone else's code
            error = as_engine_error(self._parts.student, exc)
            await call.close("failed", error)
            raise error  # noqa: B904 - it has its cause already, or is itself what was raised
        await call.close("final")
        return found

    async def _ask(self, forwarder: Forwarder, call: ForwardedCall) -> dict[str, Any]:
        responses = forwarder.forward(self._asked.route, self._asked.body)
        found: dict[str, Any] = {}
        try:
            async for response in responses:
                call.hear(response)
                found = dict(response)
        finally:
            if aclose := getattr(responses, "aclose", None):
                await aclose()
        if not call.complete:
            raise EngineError(
                f"the engine {self._parts.student.name!r} ended a forwarded request without a finish_reason"
            )
        return found
