"""What guidance cannot serve (tools, structured output, log-probabilities, …) goes to the student's engine untouched.

Each attempt is accounted for like any other call, and the answer says that it was not guided.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from gkt_plugins.contracts import Call, Forwarder, Usage, UsageRecord
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.estimates import estimate_usage
from gkt_plugins.guidance.exchange import Parts, as_engine_error
from gkt_plugins.openai_wire.errors import InvalidRequest
from gkt_plugins.openai_wire.provenance import Provenance
from gkt_plugins.openai_wire.requests import Asked
from gkt_plugins.openai_wire.usage import read_usage

__all__ = ["Forwarding"]


class Forwarding:
    """One line on its way to the student's engine and back."""

    def __init__(self, asked: Asked, parts: Parts, *, degraded: bool = False) -> None:
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
        forwarder = self._parts.student
        if not isinstance(forwarder, Forwarder):
            names = ", ".join(sorted(self._asked.features))
            raise InvalidRequest(
                f"the pipeline {self._parts.name!r} cannot serve {names}, because its student's engine "
                f"{self._parts.student.name!r} takes text only; leave it out, or use a student that is an "
                "OpenAI-compatible endpoint",
                code="unsupported_feature",
            )
        while True:
            attempt = len(self.records)
            try:
                found = await self._attempt(forwarder, attempt)
            except EngineError as exc:
                wait_s = self._parts.attempts.wait_s(self._parts.student.name, exc, attempt)
                if wait_s is None:
                    raise
                await self._parts.attempts.sleep(wait_s)
            else:
                return {**found, "model": self._asked.model, "gkt": self._told().as_json()}

    async def _attempt(self, forwarder: Forwarder, attempt: int) -> dict[str, Any]:
        engine = self._parts.student
        refusal = self._parts.attempts.refusal(engine.name)
        if refusal is not None:
            raise refusal
        breaker = self._parts.attempts.breaker(engine.name)
        record = UsageRecord(
            request_id=self._asked.requests[0].request_id,
            call=0,
            role="student",
            attempt=attempt,
            engine=engine.name,
            model=engine.model,
            status="open",
            started_at=time.time(),
            pipeline=self._parts.name,
        )
        try:
            if self._parts.accounts is not None:
                await self._parts.accounts.opened(record)
        except BaseException:
            breaker.dropped()
            raise
        began = time.perf_counter()
        found: dict[str, Any] = {}
        status: Literal["final", "failed", "cancelled"] = "cancelled"
        error: EngineError | None = None
        try:
            found = await self._ask(forwarder)
            status = "final"
            breaker.succeeded()
        except Exception as exc:  # noqa: BLE001 - an engine is someone else's code
            status, error = "failed", as_engine_error(engine, exc)
            (breaker.failed if error.retryable else breaker.dropped)()
        finally:
            if status == "cancelled":
                breaker.dropped()
            usage = replace(self._usage(found, error), seconds=time.perf_counter() - began)
            closed = replace(record, status=status, usage=usage)
            self.records.append(closed if self._parts.accounts is None else await self._parts.accounts.closed(closed))
        if error is not None:
            raise error
        return found

    async def _ask(self, forwarder: Forwarder) -> dict[str, Any]:
        responses = forwarder.forward(self._asked.route, self._asked.body)
        found: dict[str, Any] = {}
        try:
            async for response in responses:
                found = dict(response)
        finally:
            if aclose := getattr(responses, "aclose", None):
                await aclose()
        if not found:
            named = repr(self._parts.student.name)
            raise EngineError(f"the engine {named} gave no answer to a forwarded request", retryable=True)
        return found

    def _usage(self, found: Mapping[str, Any], error: EngineError | None) -> Usage:
        reported = read_usage(found.get("usage"))
        if reported is not None and reported.completion_tokens is not None:
            return reported
        said = [choice.get("message") or choice for choice in found.get("choices") or ()]
        text = "".join(str(one.get("content") or one.get("text") or "") for one in said)
        return estimate_usage(Call(self._asked.requests[0].prompt), text, error)

    def _told(self) -> Provenance:
        names = ", ".join(sorted(self._asked.features))
        costs = [record.cost_nano for record in self.records]
        known = [cost for cost in costs if cost is not None]
        return Provenance(
            guidance_tokens=0,
            teacher=None if self._parts.teacher is None else self._parts.teacher.model,
            student=self._parts.student.model,
            way="forwarded",
            degraded=self._degraded,
            notes=(f"guidance off: the request asks for {names}, which text from two models cannot give",),
            cost_nano=sum(known) if len(known) == len(costs) else None,
            currency=self.records[-1].currency,
        )
