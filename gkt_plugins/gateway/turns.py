"""One request of a client: what came, what goes out, and what is said of it when it is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson
from starlette.types import Receive, Scope, Send

from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import UsageRecord
from gkt_plugins.errors import GktError
from gkt_plugins.gateway.access import Client
from gkt_plugins.gateway.budgeting import Admission
from gkt_plugins.gateway.state import GatewayState, Served
from gkt_plugins.gateway.tracing import SILENT, RequestSpan
from gkt_plugins.guidance.answers import Answer
from gkt_plugins.guidance.events import CallKey
from gkt_plugins.guidance.exchange import Exchange
from gkt_plugins.guidance.timings import Timings
from gkt_plugins.openai_wire.errors import error_body, error_code
from gkt_plugins.openai_wire.provenance import Provenance, is_degraded, provenance, way_of
from gkt_plugins.openai_wire.requests import Asked
from gkt_plugins.openai_wire.streams import failure_event

__all__ = ["Turn", "send_error", "send_json"]

_log = logging.getLogger(__name__)

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx collects the stream
]


async def send_json(send: Send, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
    """A whole response."""
    data = orjson.dumps(body)
    lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    if headers:
        lines += [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": data})


async def send_error(send: Send, error: BaseException, headers: Mapping[str, str] | None = None) -> str:
    """The response for ``error``, and its code."""
    status, body, own = error_body(error)
    if not isinstance(error, GktError):
        _log.error("a request failed unexpectedly", exc_info=error)
    await send_json(send, status, body, own | dict(headers or {}))
    return error_code(error)


class Turn:
    """One request under way, from its arrival to its record."""

    def __init__(
        self, state: GatewayState, scope: Scope, receive: Receive, send: Send, asked: Asked, served: Served,
        client: Client, *, began: float
    ) -> None:  # fmt: skip
        """``began``: when the request arrived, a reading of ``time.perf_counter``."""
        self.state = state
        self.scope = scope
        self.receive = receive
        self.send = send
        self.asked = asked
        self.served = served
        self.client = client
        self.began = began
        self.started_at = time.time() - (time.perf_counter() - began)
        self.created = int(self.started_at)
        self.admission = Admission(asked.requests)
        self.exchanges: list[Exchange] = []
        self.records: list[UsageRecord] = []
        """Of calls that are not an exchange's: a request that was forwarded."""
        self.timings = Timings(began)
        """Of those calls."""
        self.forwarded = False
        self.begun = False
        """The response's head is out, or about to be."""
        self.complete = False
        """So is its last byte: whether the client stays is all one now."""
        self.first_text: float | None = None
        self.failed_choice = ""
        """Code of the error of a choice that failed beside others that did not."""
        self.span: RequestSpan = SILENT

    # ------------------------------------------------------------------------------------------------ out

    def headers(self, told: Provenance | None = None) -> dict[str, str]:
        """Of the response; more of them when all is known."""
        headers = {"x-request-id": self.asked.request_id, "x-gkt-pipeline": self.served.name}
        if self.served.teacher is not None:
            headers["x-gkt-teacher"] = self.served.teacher
        headers["x-gkt-student"] = self.served.student
        if told is not None:
            said = told.as_json()
            headers["x-gkt-route"] = told.way
            headers["x-gkt-guidance-tokens"] = str(told.guidance_tokens)
            headers["x-gkt-degraded"] = "true" if told.degraded else "false"
            for key in ("cost", "counterfactual_cost", "currency", "overhead_ms"):
                if said[key] is not None:
                    headers["x-gkt-" + key.replace("_", "-")] = str(said[key])
        return headers

    async def begin_stream(self) -> None:
        """The head of a stream."""
        own = [(name.encode(), value.encode("latin-1", "replace")) for name, value in self.headers().items()]
        self.begun = True
        self.first_text = time.perf_counter()
        await self.send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS + own})

    async def answer(self, body: Mapping[str, Any], told: Provenance) -> None:
        """The whole response."""
        self.begun = self.complete = True
        await send_json(self.send, 200, body, self.headers(told))

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """A piece of the stream."""
        self.complete = not more
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def fail(self, error: BaseException) -> str:
        """Answer with ``error``, as far as that is still possible, and return its code."""
        if not self.begun:
            return await send_error(self.send, error, self.headers())
        if not isinstance(error, GktError):
            _log.error("a request failed unexpectedly", exc_info=error)
        await self.write(failure_event(error), more=False)
        return error_code(error)

    # ------------------------------------------------------------------------------------------ afterwards

    def answers(self) -> list[Answer]:
        """Of every exchange, so far."""
        return [exchange.answer for exchange in self.exchanges]

    def provenance(self, answers: Sequence[Answer]) -> Provenance:
        """What the response says of itself."""
        notes = [*self.asked.notes, *([self.admission.note] if self.admission.note else [])]
        if given := [key for key in self.served.fixed if self.asked.body.get(key) is not None]:
            notes.append(f"left out: {', '.join(given)}, which the pipeline's preset fixes")
        return provenance(
            answers,
            teacher=self.served.teacher,
            student=self.served.student,
            prices=self.state.opened.prices,
            overhead_s=self.all_timings().own_s(time.perf_counter()),
            notes=notes,
            degraded=self.admission.degraded,
        )

    @property
    def called(self) -> bool:
        """An engine was called."""
        return bool(self.timings) or any(exchange.timings for exchange in self.exchanges)

    def all_timings(self) -> Timings:
        """Every engine call, seen from the request's arrival."""
        timings = Timings(self.began)
        timings.update(self.timings)
        for position, exchange in enumerate(self.exchanges):
            for key, timing in exchange.timings.items():
                timings[CallKey(key.role, len(self.exchanges) * key.number + position)] = timing
        return timings

    async def over(self, status: Literal["ok", "error", "refused", "cancelled"], code: str = "") -> None:
        """Settle the budget, and put the request on record. What fails here is logged: the client has its answer."""
        answers = self.answers()
        records = [*self.records, *(record for answer in answers for record in answer.records)]
        record = self._record(answers, records, status, code)
        self.state.metrics.observe(record, records)
        self.span.observe(record)
        try:
            await self.admission.settle(records)
            await self.state.opened.accounts.request(record)
        except GktError as exc:
            _log.error("the request %s is not on record: %s", record.request_id, exc)

    def _record(
        self,
        answers: Sequence[Answer],
        records: Sequence[UsageRecord],
        status: Literal["ok", "error", "refused", "cancelled"],
        code: str,
    ) -> RequestRecord:
        now = time.perf_counter()
        timings = self.all_timings()
        notes = [note for answer in answers for choice in answer.choices for note in choice.notes]
        return RequestRecord(
            request_id=self.asked.request_id,
            pipeline=self.served.name,
            key=self.client.name,
            started_at=self.started_at,
            route="forwarded" if self.forwarded else way_of(answers),
            status=status,
            error=code,
            streamed=self.asked.stream,
            choices=sum(request.n for request in self.asked.requests),
            guidance_tokens=sum(answer.guidance_tokens for answer in answers),
            degraded=self.admission.degraded or is_degraded(notes),
            cached=any(answer.cached for answer in answers),
            first_token_s=None if self.first_text is None else self.first_text - self.began,
            total_s=now - self.began,
            teacher_s=timings.role_s("teacher", now),
            student_s=timings.role_s("student", now),
            overhead_s=timings.own_s(now) if timings else None,
            retries=sum(record.attempt > 0 for record in records),
        )
